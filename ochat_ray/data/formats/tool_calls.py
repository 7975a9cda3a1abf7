"""Parse tools, calls of them, and reasoning, in the formats of OpenAI and of LLaMA-Factory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ochat_ray.data.formats.values import RecordError, as_list, checked_text, decoded, is_empty
from ochat_ray.schema import ToolCall, is_nested_too_deeply

REASONING = ("reasoning_content", "reasoning", "thinking")
"""Names of an answer's reasoning: DeepSeek's and Qwen's, OpenRouter's, and gpt-oss's."""


def calls_of(raw: Mapping[str, Any]) -> tuple[ToolCall, ...]:
    """Return the calls of an answer: OpenAI's `tool_calls`, or its older `function_call`.

    Raises:
        RecordError: A call has no name, or its arguments are neither an object nor text.
    """
    found = decoded(raw.get("tool_calls"))
    if is_empty(found):
        older = decoded(raw.get("function_call"))
        found = [] if is_empty(older) else [older]
    if not isinstance(found, (list, tuple)):
        raise RecordError("tool_calls: not a list")
    return tuple(map(_call, found))


def call_of_text(text: str) -> tuple[ToolCall, ...]:
    """Return the calls that a turn's text is: an object of name and arguments, or a list of them.

    Raises:
        RecordError: The text is no call.
    """
    found = decoded(text)
    return tuple(map(_call, found if isinstance(found, list) else [found]))


def reasoning_of(raw: Mapping[str, Any]) -> tuple[str, str | None]:
    """Return an answer's reasoning and the name of its key; "" and None if there is none."""
    for name in REASONING:
        if isinstance(raw.get(name), str) and not is_empty(raw[name]):
            return checked_text(raw[name]), name
    return "", None


def tools_of(value: Any) -> str:
    """Return a record's tools as a JSON array of OpenAI's form; "" if there are none.

    Raises:
        RecordError: They are not a list of objects.
    """
    found = decoded(value)
    if is_empty(found):
        return ""
    tools = as_list(found)
    if not tools or not all(isinstance(tool, dict) for tool in map(decoded, tools)):
        raise RecordError("tools: not a list of objects")
    tools = [decoded(tool) for tool in tools]
    whole = [
        tool if "function" in tool else {"type": "function", "function": tool} for tool in tools
    ]
    return _written(whole)


def _written(value: Any) -> str:
    """Return a value as JSON.

    Raises:
        RecordError: It is nested too deeply, or has an unpaired surrogate.
    """
    if is_nested_too_deeply(value):
        raise RecordError("tools or arguments are nested too deeply")
    return checked_text(json.dumps(_without_nulls(value), ensure_ascii=False))


def _without_nulls(value: Any) -> Any:
    """Remove the nulls with which Parquet fills the columns that a tool does not have."""
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None or k == "default"}
    return [_without_nulls(v) for v in value] if isinstance(value, list) else value


def _call(raw: Any) -> ToolCall:
    raw = decoded(raw)
    function = decoded(raw.get("function", raw)) if isinstance(raw, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RecordError("a tool call without a name")
    arguments = function.get("arguments", function.get("parameters"))
    if arguments is None:
        arguments = {}
    if isinstance(arguments, dict):
        arguments = _written(arguments)
    if not isinstance(arguments, str):
        raise RecordError("the arguments of a tool call are neither an object nor text")
    return ToolCall(
        id=str(raw.get("id") or ""),
        name=checked_text(function["name"]),
        arguments=checked_text(arguments),
    )
