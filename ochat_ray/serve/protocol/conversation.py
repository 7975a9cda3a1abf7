"""Messages of a chat request as the template's turns, with tools, calls and results as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ochat_ray.schema import ToolCall, Turn
from ochat_ray.serve.protocol.fields import Message
from ochat_ray.serve.protocol.tools import Call, Tool, calls_text, results_text, system_text


def turns_of(messages: Sequence[Message], tools: Sequence[Tool]) -> list[Turn]:
    """Return the turns that the model reads.

    The tools are described in the first system message, after its text, or in one of their own.
    Results of an assistant's calls are one user turn, in the order of the calls.

    Raises:
        ValueError: A result belongs to no call, or a call has no result; the text names the id.
    """
    turns: list[Turn] = []
    calls: dict[str, str | None] = {}
    for message in messages:
        if message.role == "tool":
            _add_result(calls, message)
            continue
        _close(turns, calls)
        calls = {call.id: None for call in message.tool_calls or ()}
        if len(calls) < len(message.tool_calls or ()):
            raise ValueError("messages: two calls of a message have the same id")
        turns.append(Turn(role=_role(message), text=_text(message)))
    _close(turns, calls)
    if not tools:
        return turns
    described = system_text(tools)
    if turns[0].role == "system":
        return [Turn(role="system", text=f"{turns[0].text}\n\n{described}"), *turns[1:]]
    return [Turn(role="system", text=described), *turns]


def own_turns_of(messages: Sequence[Message]) -> list[Turn]:
    """Return the messages as turns for the model's own chat template, with calls and results."""
    return [
        Turn(
            role=message.role,
            text=message.text,
            reasoning=message.reasoning_content or "",
            tool_calls=tuple(
                ToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments)
                for call in message.tool_calls or ()
            ),
            tool_call_id=message.tool_call_id or "",
            name=(message.name or "") if message.role == "tool" else "",
        )
        for message in messages
    ]


def _add_result(calls: dict[str, str | None], message: Message) -> None:
    if message.tool_call_id not in calls:
        raise ValueError(
            f"messages: the result of tool_call_id {message.tool_call_id!r} follows no message of "
            "the assistant with such a call"
        )
    if calls[message.tool_call_id] is not None:
        raise ValueError(f"messages: tool_call_id {message.tool_call_id!r} has two results")
    calls[message.tool_call_id] = message.text


def _close(turns: list[Turn], calls: dict[str, str | None]) -> None:
    """Add the results of the calls of the assistant's last message, all of which must be there."""
    results = [result for result in calls.values() if result is not None]
    if len(results) < len(calls):
        absent = next(id for id, result in calls.items() if result is None)
        raise ValueError(f"messages: the call {absent!r} has no message of the role tool")
    if results:
        turns.append(Turn(role="user", text=results_text(results)))


def _role(message: Message) -> Literal["system", "user", "assistant"]:
    if message.role in ("system", "developer"):
        return "system"
    return "user" if message.role == "user" else "assistant"


def _text(message: Message) -> str:
    if message.tool_calls is None:
        return message.text
    called = (call.function for call in message.tool_calls)
    return calls_text(message.text, (Call(name=c.name, arguments=c.arguments) for c in called))
