"""Every example of docs/data-format.md is read as the conversation that the page says."""

import json
import re
from pathlib import Path

import pytest

from ochat_ray.data.clean import clean, rules
from ochat_ray.data.formats.turns import ROLES, TOOL_ROLES
from ochat_ray.data.records import records_of
from ochat_ray.data.share_page import page_record
from ochat_ray.schema import Conversation

PAGE = (Path(__file__).parents[2] / "docs/data-format.md").read_text()
FORMATS = PAGE[PAGE.index("## Formats\n") : PAGE.index("## From HTML to Markdown")]
EXAMPLES = re.findall(r"^```(json|html)\n(.*?)^```$", FORMATS, re.MULTILINE | re.DOTALL)
RULES = rules(keep_model="any", blocked_words=())


def test_the_formats_have_examples_of_at_most_three_lines():
    assert len(EXAMPLES) >= 20
    assert all(text.count("\n") <= 3 for _, text in EXAMPLES)


@pytest.mark.parametrize(("kind", "text"), EXAMPLES)
def test_an_example_is_its_conversation(kind, text):
    item = page_record(text.encode()) if kind == "html" else json.loads(text)
    (record,) = records_of(item, source="x", index=0, page=kind == "html")
    assert isinstance(record, Conversation), record
    kept = clean(record, RULES)
    assert isinstance(kept, Conversation), kept
    assert [(turn.role, turn.text) for turn in kept.turns[-2:]] == [
        ("user", "Hi"),
        ("assistant", "Hello"),
    ]
    assert [turn.loss_weight for turn in kept.turns[-2:]] == [0.0, 1.0]


def test_a_system_prompt_of_an_example_is_read():
    systems = [text for _, text in EXAMPLES if "Be brief." in text]
    assert len(systems) >= 4
    for text in systems:
        (record,) = records_of(json.loads(text), source="x", index=0)
        assert (record.turns[0].role, record.turns[0].text) == ("system", "Be brief.")


def test_the_table_of_roles_is_complete():
    rows = re.findall(r"^\| (.*) \| (.*) \|$", FORMATS, re.MULTILINE)
    documented = {
        name: row[1].split(":")[0] for row in rows for name in re.findall("`(.*?)`", row[0])
    }
    assert {name: documented.get(name) for name in ROLES} == dict(ROLES)
    assert {"tool", "function", "function_call", "observation"} <= TOOL_ROLES & documented.keys()
