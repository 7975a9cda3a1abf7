"""Turns of a conversation as the messages that chat templates read.

Sources: transformers' documentation of chat templates (tools and their calls); OpenAI's chat
completions (`tool_calls`, `tool_call_id`, the role developer).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ochat_ray.schema import ToolCall, Turn, is_nested_too_deeply

_REASONING = re.compile(r"\s*<think>\n?(.*?)\n?</think>\s*(.*)", re.DOTALL)
INLINE = "reasoning before the content"
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation and the tools that it offers; `tools` is a JSON array, or empty."""

    turns: Sequence[Turn]
    tools: str = ""


def text_of(chat: Chat) -> str:
    """Return all texts of a conversation, joined."""
    parts = [json.dumps(json.loads(chat.tools), ensure_ascii=False) if chat.tools else ""]
    for turn in chat.turns:
        parts += [turn.text, turn.reasoning, turn.tool_call_id, turn.name]
        for call in turn.tool_calls:
            decoded = json.dumps(_arguments(call.arguments, CallStyle()), ensure_ascii=False)
            parts += [call.id, call.name, call.arguments, decoded]
    return "".join(parts)


def has_deep_json(chat: Chat) -> bool:
    """Return whether tools or arguments of a conversation are nested too deeply to be written."""
    texts = [call.arguments for turn in chat.turns for call in turn.tool_calls]
    try:
        values = [_arguments(text, CallStyle()) for text in texts]
        values.append(json.loads(chat.tools or "[]"))
    except RecursionError:
        return True
    return any(map(is_nested_too_deeply, values))


@dataclass(frozen=True, slots=True)
class CallStyle:
    """Form of an answer's tool calls that a template reads.

    `content` is that of an answer without text: "" or None. `arguments_as_text` says whether the
    arguments are JSON text, as OpenAI's client sends them, and not an object. With `short_ids`,
    calls have ids of nine letters and digits, instead of those that they were recorded with:
    Mistral's templates refuse any other, and OpenAI's have 29 characters.
    """

    content: str | None = ""
    arguments_as_text: bool = False
    short_ids: bool = False


CALL_STYLES = tuple(
    CallStyle(content, as_text) for as_text in (False, True) for content in ("", None)
)


def messages_of(
    chat: Chat, template: str, calls: CallStyle = CallStyle()
) -> tuple[list[dict[str, Any]], list[Any]]:
    """Return messages and tools for a template, given by its source.

    An answer's reasoning is in the field that the template reads; where it reads none but knows
    </think>, it is under `INLINE`, to be written before the content. A developer's message is a
    system message for a template that does not know the role; two such messages side by side are
    one, joined with a blank line, since many templates accept no other. A result has the name of
    the function whose call it answers. Calls and results without ids get some of nine letters and
    digits, in order, which is the form that Mistral's templates want.
    """
    keys = [key for key in _REASONING_KEYS if re.search(rf"[.'\"]{key}\b", template)]
    names: dict[str, str] = {}
    messages: list[dict[str, Any]] = []
    before = ""
    for turn in _with_ids(chat.turns, short=calls.short_ids):
        names |= {call.id: call.name for call in turn.tool_calls}
        message: dict[str, Any] = {"role": turn.role, "content": turn.text}
        roles = {before, turn.role}
        before = turn.role
        if roles == {"system", "developer"} and "developer" not in template:
            messages[-1]["content"] += f"\n\n{turn.text}"
            continue
        if turn.role == "developer" and "developer" not in template:
            message["role"] = "system"
        elif turn.role == "assistant":
            message |= _answer(turn, keys, inline="</think>" in template)
            if turn.tool_calls:
                message["tool_calls"] = [_call(call, calls) for call in turn.tool_calls]
                message["content"] = message["content"] or calls.content
        elif turn.role == "tool":
            message["tool_call_id"] = turn.tool_call_id
            if name := turn.name or names.get(turn.tool_call_id):
                message["name"] = name
        elif turn.name:
            message["name"] = turn.name
        messages.append(message)
    return messages, json.loads(chat.tools) if chat.tools else []


def split_reasoning(turn: Turn) -> tuple[str, str]:
    """Return an answer's reasoning and its text; <think>...</think> at its start is reasoning."""
    if turn.reasoning:
        return turn.reasoning, turn.text
    found = _REASONING.fullmatch(turn.text)
    return (found[1], found[2]) if found else ("", turn.text)


def _with_ids(turns: Sequence[Turn], *, short: bool) -> list[Turn]:
    """Return the turns with ids in all calls and results, of nine characters if `short`."""
    found = []
    count = 0
    unanswered: list[str] = []
    renamed: dict[str, str] = {}
    for turn in turns:
        if turn.tool_calls:
            calls = [
                call if _is_usable(call.id, short) else replace(call, id=f"call{n:05d}")
                for n, call in enumerate(turn.tool_calls, count)
            ]
            given = (call.id for call in turn.tool_calls)
            renamed = {old: new.id for old, new in zip(given, calls, strict=True) if old}
            unanswered = [call.id for call in calls]
            count += len(calls)
            turn = replace(turn, tool_calls=tuple(calls))
        if turn.role == "tool" and unanswered:
            id = renamed.get(turn.tool_call_id, turn.tool_call_id)
            answered = id if id in unanswered else unanswered[0]
            unanswered.remove(answered)
            turn = replace(turn, tool_call_id=id if _is_usable(id, short) else answered)
        found.append(turn)
    return found


def _is_usable(id: str, short: bool) -> bool:
    return bool(re.fullmatch("[A-Za-z0-9]{9}", id)) if short else bool(id)


def _answer(turn: Turn, keys: Sequence[str], *, inline: bool) -> dict[str, Any]:
    message: dict[str, Any] = {}
    reasoning, text = split_reasoning(turn)
    if reasoning and keys:
        message = {"content": text} | dict.fromkeys(keys, reasoning)
    elif reasoning and inline:
        message = {"content": text, INLINE: reasoning}
    return message


def _call(call: ToolCall, style: CallStyle) -> dict[str, Any]:
    function = {"name": call.name, "arguments": _arguments(call.arguments, style)}
    return {"id": call.id, "type": "function", "function": function}


def is_object(text: str) -> bool:
    """Return whether a text is a JSON object."""
    return isinstance(_arguments(text, CallStyle()), dict)


def _arguments(text: str, style: CallStyle) -> Any:
    """Return the object that a call's arguments are in JSON, or the text."""
    if style.arguments_as_text:
        return text
    try:
        found = json.loads(text)
    except ValueError:
        return text
    return found if isinstance(found, dict) else text
