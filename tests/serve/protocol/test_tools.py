"""Tool calls as text: what the grammar allows, and what is read back from any division of it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLMatcher
from llguidance.hf import from_tokenizer

from ochat_ray.serve.protocol.tools import (
    NO_ARGUMENTS,
    Call,
    CallReader,
    CallRules,
    Tool,
    calls_text,
    results_text,
    system_text,
)

INTEGER = {
    "type": "object",
    "properties": {"x": {"type": "integer"}},
    "required": ["x"],
    "additionalProperties": False,
}
TOOLS = (
    Tool(name="add", description='Adds "x".', parameters=INTEGER),
    Tool(name="now", parameters=NO_ARGUMENTS),
)
ADD, NOW = Call(name="add", arguments='{"x": 12}'), Call(name="now", arguments="{}")
ONE, TWO = calls_text("", [ADD]), calls_text("", [ADD, NOW])


@pytest.fixture(scope="module")
def accepts(tokenizer):
    """Function that returns whether a grammar allows a whole text."""
    end = tokenizer.convert_tokens_to_ids("<|end_of_turn|>")
    guided = from_tokenizer(tokenizer, eos_token=end)

    def accepts(source, text):
        matcher = LLMatcher(guided, source, log_level=0)
        assert not matcher.is_error(), matcher.get_error()
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()

    return accepts


def test_the_syntax_is_that_of_hermes_and_qwen():
    assert ONE == '<tool_call>\n{"name": "add", "arguments": {"x": 12}}\n</tool_call>'
    assert calls_text("Let me see.", [NOW]) == (
        'Let me see.\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    )
    assert results_text(["12", "a"]) == (
        "<tool_response>\n12\n</tool_response>\n<tool_response>\na\n</tool_response>"
    )
    listed = system_text(TOOLS).partition("<tools>\n")[2].partition("\n</tools>")[0]
    assert [json.loads(line)["function"]["name"] for line in listed.splitlines()] == ["add", "now"]


@pytest.mark.parametrize(
    ("text", "auto", "required", "one"),
    [
        ("no call", True, False, False),
        ("<tool_call", True, False, False),
        (ONE, True, True, True),
        (TWO, True, True, False),
        ("I think: " + ONE, True, False, False),
        (ONE + " Done.", True, False, False),
        (ONE.replace("12", '"a"'), False, False, False),
        (ONE.replace("add", "subtract"), False, False, False),
        (ONE.replace('"x": 12', '"x": 12, "y": 1'), False, False, False),
        (ONE.replace('"x": 12', '"x":   12'), False, False, False),
        (ONE[:-1], False, False, False),
        ("", True, False, False),
    ],
)
def test_calls_name_a_tool_and_match_its_schema(accepts, text, auto, required, one):
    assert accepts(CallRules(tools=TOOLS, required=False, parallel=True).lark(), text) is auto
    assert accepts(CallRules(tools=TOOLS, required=True, parallel=True).lark(), text) is required
    assert accepts(CallRules(tools=TOOLS, required=True, parallel=False).lark(), text) is one


def test_a_call_that_must_be_the_only_one_ends_the_answer(accepts):
    source = CallRules(tools=TOOLS, required=False, parallel=False).lark()
    assert accepts(source, "yes " + ONE)
    assert accepts(source, "no")
    assert not accepts(source, TWO)
    assert not accepts(source, ONE + " more")


@pytest.mark.parametrize(
    ("text", "auto", "required"),
    [
        ('{"x": 1}', True, False),
        ('{"y": 1}', False, False),
        ("no call", False, False),
        ("", False, False),
        (TWO, True, True),
        ("I think: " + ONE, False, False),
        (ONE + '{"x": 1}', False, False),
    ],
)
def test_with_a_schema_an_answer_is_calls_or_matches_it(accepts, text, auto, required):
    rules = CallRules(tools=TOOLS, answer=json.dumps(INTEGER))
    assert accepts(rules.lark(), text) is auto
    assert accepts(replace(rules, required=True).lark(), text) is required
    assert accepts(replace(rules, parallel=False).lark(), text) is (auto and text != TWO)


def read(pieces, **options):
    """The content and the calls of an answer that arrives in these pieces."""
    reader, content, calls = CallReader(**options), "", []
    parts = [part for piece in pieces for part in reader.push(piece)]
    for part in [*parts, *reader.flush()]:
        if part.is_name:
            assert part.call == len(calls)
            calls.append([part.text, ""])
        elif part.call is not None:
            calls[part.call][1] += part.text
        else:
            content += part.text
    return content, [Call(name=name, arguments=arguments) for name, arguments in calls]


HOSTILE = Call(name="add", arguments=json.dumps({"s": 'a}\n</tool_call>"<tool_call>\\'}))


@given(
    content=st.sampled_from(["", "I <tool_ see", "a\n\nb", "<tool_call", "x <"]),
    calls=st.lists(st.sampled_from([ADD, NOW, HOSTILE]), max_size=3),
    data=st.data(),
)
def test_what_was_written_is_read_however_it_is_divided(content, calls, data):
    text = calls_text(content, calls)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=12)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert read(pieces) == (content, calls)
    json_text = json.dumps([text])
    cuts = [*sorted(cut for cut in cuts if cut < len(json_text)), len(json_text)]
    pieces = [json_text[a:b] for a, b in zip([0, *cuts[:-1]], cuts, strict=True)]
    assert read(pieces, or_json=True) == (json_text, [])
    if calls and not content:
        assert read([text[:5], text[5:]], or_json=True) == (content, calls)


def test_whitespace_around_calls_is_no_content_and_other_text_is():
    assert read([f"  \n{ONE}\n\n{ONE}\n "]) == ("", [ADD, ADD])
    assert read([f"Hm. {ONE} Done."]) == ("Hm. Done.", [ADD])
    assert read(["only text \n"]) == ("only text \n", [])


def test_a_call_that_is_cut_off_has_the_arguments_so_far():
    assert read([ONE[: ONE.index("12") + 1]]) == ("", [Call(name="add", arguments='{"x": 1')])
    assert read([ONE[:20]]) == ("", [])
