"""Tools, calls, results and reasoning of records, for templates that can represent them."""

import json

import pytest

from ochat_ray.data import clean
from ochat_ray.data.dedup import exact
from ochat_ray.schema import Conversation, Reason, ToolCall, Turn, conversation_row, turn_of
from tests.data.reading import drop, one, read_record

FUNCTION = {"name": "add", "description": "Add", "parameters": {"type": "object"}}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
CALLED = (ToolCall(id="c1", name="add", arguments='{"a": 1}'),)
OPENAI = {
    "tools": [{"type": "function", "function": FUNCTION}],
    "messages": [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "1 + 0?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "1"},
        {"role": "assistant", "content": "One.", "reasoning_content": "The tool says 1."},
    ],
}


def test_openais_messages_keep_tools_calls_results_and_reasoning():
    record = one(OPENAI, tools=True)
    assert json.loads(record.tools) == OPENAI["tools"]
    assert record.turns == (
        Turn(role="developer", text="Be brief."),
        Turn(role="user", text="1 + 0?"),
        Turn(role="assistant", text="", tool_calls=CALLED),
        Turn(role="tool", text="1", tool_call_id="c1"),
        Turn(role="assistant", text="One.", reasoning="The tool says 1."),
    )
    assert record.unknown_keys == ()


def test_without_a_template_for_tools_the_record_is_unsupported_as_before():
    assert drop(OPENAI) == (Reason.UNSUPPORTED, "tools")
    no_tools = {"messages": OPENAI["messages"]}
    assert drop(no_tools) == (Reason.UNSUPPORTED, "turn 2: tool_calls")
    plain = {"messages": [OPENAI["messages"][1], OPENAI["messages"][4]]}
    assert one(plain).unknown_keys == ("turn.reasoning_content",)
    assert one(plain).turns[1].reasoning == ""


@pytest.mark.parametrize(
    "item",
    [
        {
            "tools": json.dumps([FUNCTION]),
            "conversations": [
                {"from": "human", "value": "1 + 0?"},
                {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'},
                {"from": "observation", "value": "1"},
                {"from": "gpt", "value": "One."},
            ],
        },
        {
            "functions": [FUNCTION],
            "messages": [
                {"role": "user", "content": "1 + 0?"},
                {"role": "assistant", "function_call": {"name": "add", "arguments": '{"a": 1}'}},
                {"role": "function", "name": "add", "content": "1"},
                {"role": "assistant", "content": "One."},
            ],
        },
        {  # a row of Parquet, with nulls where another row has something
            "tools": [{"type": "function", "function": FUNCTION | {"strict": None}}],
            "messages": [
                {"role": "user", "content": "1 + 0?", "tool_calls": None},
                {"role": "assistant", "content": "", "tool_calls": [
                    {"id": None, "function": {"name": "add", "arguments": {"a": 1, "b": None}}}]},
                {"role": "tool", "content": "1", "tool_calls": None},
                {"role": "assistant", "content": "One.", "tool_calls": []},
            ],
        },
    ],
    ids=["LLaMA-Factory", "functions", "Parquet"],
)  # fmt: skip
def test_other_formats_have_the_same_turns(item):
    record = one(item, tools=True)
    assert json.loads(record.tools) == [{"type": "function", "function": FUNCTION}]
    assert [turn.role for turn in record.turns] == ["user", "assistant", "tool", "assistant"]
    (call,) = record.turns[1].tool_calls
    assert (call.name, json.loads(call.arguments)) == ("add", {"a": 1})


@pytest.mark.parametrize(
    ("changes", "detail"),
    [
        ({"tool_calls": [{"id": "x"}]}, "turn 1: a tool call without a name"),
        ({"tool_calls": "add"}, "turn 1: tool_calls: not a list"),
        ({"tool_calls": [{"name": "f", "arguments": 5}]}, "turn 1: the arguments of a tool call"),
        ({"tool_responses": [1]}, "turn 1: tool_responses"),
    ],
)
def test_what_is_no_call_is_dropped_with_its_place(changes, detail):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"} | changes]
    assert drop({"messages": turns}, tools=True)[1].startswith(detail)
    assert drop({"messages": turns, "tools": "add"}, tools=True)[1].startswith(
        ("tools: not a list", detail)
    )


def test_a_row_of_the_table_is_the_turns_again():
    record = one(OPENAI, tools=True)
    row = conversation_row(record, "d")
    assert tuple(turn_of(turn) for turn in row["turns"])[2:] == tuple(
        Turn(**{**{n: getattr(t, n) for n in t.__slots__}, "weight": t.loss_weight})
        for t in record.turns[2:]
    )
    assert row["tools"] == record.tools


def test_conversations_that_differ_in_a_call_alone_are_different():
    turns = [Turn(role="user", text="a"), Turn(role="assistant", text="b")]
    called = [turns[0], Turn(role="assistant", text="b", tool_calls=CALLED)]
    digests = {exact.digest(turns), exact.digest(called), exact.digest(turns, "[]")}
    assert len(digests) == 3


def test_the_order_of_roles_knows_calls_and_results():
    def kept(*roles, called=()):
        turns = [
            Turn(role=role, text="x", tool_calls=CALLED if n in called else ())
            for n, role in enumerate(roles)
        ]
        record = Conversation(id="a", source="b", turns=tuple(turns))
        return isinstance(clean.need_alternating_roles(record), Conversation)

    assert kept("user", "assistant", "tool", "tool", "assistant", called={1})
    assert kept("developer", "user", "assistant", "user", "assistant", called={2})
    assert kept("system", "developer", "user", "assistant")
    assert not kept("developer", "developer", "user", "assistant")
    assert not kept("user", "assistant", "tool", "assistant")  # no call
    assert not kept("user", "tool", "assistant")
    assert not kept("user", "assistant", "assistant", called={1})


def test_a_result_without_text_is_kept_and_an_empty_answer_is_not():
    (record,) = read_record(OPENAI, tools=True)
    empty = Turn(role="tool", text="", tool_call_id="c1")
    turns = (*record.turns[:3], empty, record.turns[4])
    changed = Conversation(id="a", source="b", turns=turns)
    assert clean.need_text(changed) is changed
    nothing = Conversation(id="a", source="b", turns=(turns[1], Turn(role="assistant", text="")))
    assert clean.need_text(nothing).reason == Reason.EMPTY_TURN


def nested(depth):
    value = {}
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.parametrize("depth", [99, 100, 400, 900])
def test_nesting_without_end_is_a_drop_and_not_the_end_of_the_job(depth):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    calls = [{"name": "f", "arguments": nested(depth)}]
    called = {"messages": [turns[0], {**turns[1], "tool_calls": calls}]}
    # The array, the object of type and function, and the function's own object are three levels.
    tools = [{"name": "f", "parameters": nested(depth - 3)}]
    offered = {"messages": turns, "tools": tools}
    for item in (called, offered):
        (record,) = read_record(item, tools=True)
        # One more than `depth`: the empty object in the middle.
        assert isinstance(record, Conversation) == (depth < 100), record
        if depth >= 100:
            assert record.detail.endswith("tools or arguments are nested too deeply")
