"""Messages as the turns that the model reads."""

import pytest
from pydantic import ValidationError

from ochat_ray.serve.protocol.conversation import turns_of
from ochat_ray.serve.protocol.fields import Message
from ochat_ray.serve.protocol.tool_fields import ToolDefinition

ASKED = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "now"}}
CALLS = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"id": "a", "type": "function", "function": {"name": "now", "arguments": "{}"}},
        {"id": "b", "type": "function", "function": {"name": "add", "arguments": '{"x": 1}'}},
    ],
}


def result(id, content):
    return {"role": "tool", "tool_call_id": id, "content": content}


def turns(*messages, tools=()):
    made = [Message.model_validate(message) for message in messages]
    found = turns_of(made, [ToolDefinition.model_validate(tool).tool() for tool in tools])
    return [(turn.role, turn.text) for turn in found]


def test_plain_messages_are_turns_and_parts_are_joined():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert turns({"role": "developer", "content": "s"}, {"role": "user", "content": parts}) == [
        ("system", "s"),
        ("user", "ab"),
    ]


def test_calls_and_results_are_text_and_results_are_in_the_order_of_the_calls():
    found = turns(ASKED, CALLS, result("b", "2"), result("a", "noon"), ASKED)
    assert [role for role, _ in found] == ["user", "assistant", "user", "user"]
    assert found[1][1] == (
        '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>\n'
        '<tool_call>\n{"name": "add", "arguments": {"x": 1}}\n</tool_call>'
    )
    assert found[2][1] == (
        "<tool_response>\nnoon\n</tool_response>\n<tool_response>\n2\n</tool_response>"
    )


def test_tools_are_described_in_the_system_message():
    ((role, text), _) = turns(ASKED, tools=[TOOL])
    assert role == "system"
    assert '"name": "now"' in text
    ((_, joined), _) = turns({"role": "system", "content": "Be brief."}, ASKED, tools=[TOOL])
    assert joined == "Be brief.\n\n" + text


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([ASKED, result("a", "1")], "'a' follows no message"),
        ([ASKED, CALLS, result("a", "1")], "the call 'b' has no message"),
        ([ASKED, CALLS, result("a", "1"), ASKED, result("b", "1")], "the call 'b' has no message"),
        ([ASKED, CALLS, result("a", "1"), result("a", "1")], "'a' has two results"),
        ([ASKED, CALLS | {"tool_calls": CALLS["tool_calls"][:1] * 2}], "the same id"),
    ],
)
def test_results_that_do_not_fit_the_calls_are_refused(messages, problem):
    with pytest.raises(ValueError, match=problem):
        turns(*messages)


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        ({"role": "user", "content": None}, "content: is required"),
        ({"role": "assistant"}, "content: is required"),
        (ASKED | {"tool_calls": CALLS["tool_calls"]}, "only in messages of the assistant"),
        (ASKED | {"tool_call_id": "a"}, "messages of the role tool, and only there"),
        ({"role": "tool", "content": "1"}, "messages of the role tool, and only there"),
        (CALLS | {"tool_calls": [{"id": "a", "type": "custom", "function": {}}]}, "function"),
    ],
)
def test_fields_that_do_not_fit_the_role_are_refused(message, problem):
    with pytest.raises(ValidationError, match=problem):
        Message.model_validate(message)


@pytest.mark.parametrize(
    "function",
    [{"name": "a b"}, {"name": ""}, {"name": "f", "parameters": {"type": "string"}}],
)
def test_functions_that_cannot_be_called_are_refused(function):
    with pytest.raises(ValidationError):
        ToolDefinition.model_validate({"type": "function", "function": function})
