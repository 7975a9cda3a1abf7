"""Model labels: spellings of one model, and labels that are not one."""

import re
from pathlib import Path

import pytest

from ochat_ray.data.model_labels import normalize_model

DOCUMENT = Path(__file__).parents[2] / "docs/data-format.md"


def documented():
    """Yield (label, spelling) of the table of docs/data-format.md."""
    rows = re.search(r"\| label \| written \|\n\|[- |]+\|\n((?:\|.*\n)+)", DOCUMENT.read_text())
    for row in rows[1].splitlines():
        labels, written = (re.sub(r", which is .*", "", cell) for cell in row.split("|")[1:3])
        groups = written.split(";")
        names = re.findall("`([^`]+)`", labels)
        assert len(groups) == len(names), row
        for name, group in zip(names, groups, strict=True):
            yield from ((name, spelling) for spelling in [name, *re.findall("`([^`]+)`", group)])


@pytest.mark.parametrize(("label", "spelling"), list(documented()))
def test_spellings_of_the_documented_table_are_one_label(label, spelling):
    assert normalize_model(spelling) == label
    assert normalize_model(f" Model:  {spelling.upper()} ") == label


@pytest.mark.parametrize(
    ("label", "model"),
    [
        ("Model: GPT-4", "gpt-4"),
        (" model:  gpt 4 ", "gpt-4"),
        ("GPT\u20114", "gpt-4"),
        ("GPT\u20144", "gpt-4"),
        ("\uff27\uff30\uff34\uff0d\uff14 Turbo", "gpt-4-turbo"),
        ("GPT-4 (custom)", "gpt-4 (custom)"),
        ("GPT-4 Turbo (browsing)", "gpt-4-turbo (browsing)"),
        ("", ""),
        (None, ""),
        ("Model:", ""),
    ],
)
def test_a_label_has_one_spelling(label, model):
    assert normalize_model(label) == model


@pytest.mark.parametrize(
    "label",
    ["legacy support bot", "turbocharged", "chatgpt plus", "my gpt-4", "gpt-4-foo", "koala  13b"],
)
def test_an_unknown_label_stays_as_written(label):
    assert normalize_model(label.upper()) == " ".join(label.split())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("chatgpt-4o-latest", "gpt-3.5"),
        ("chatgpt-4o-latest", "gpt-4o"),
        ("gpt-4o", "gpt-4"),
        ("gpt-4-turbo", "gpt-4"),
        ("o1", "o1-preview"),
        ("claude-3-opus", "claude-3-5-sonnet"),
        ("Default (GPT-4)", "Default (GPT-3.5)"),
        ("mistral-large-2402", "mistral-large-2407"),
    ],
)
def test_models_that_differ_have_labels_that_differ(one, other):
    assert normalize_model(one) != normalize_model(other)
