"""Parse one message of a list: its role, text, loss weight and unknown keys."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ochat_ray.data.formats.columns import KEYS
from ochat_ray.data.formats.tool_calls import call_of_text, calls_of, reasoning_of
from ochat_ray.data.formats.values import (
    RecordError,
    as_list,
    checked_text,
    decoded,
    first_of,
    is_empty,
    unknown_names,
    unsupported,
    weight_of,
)
from ochat_ray.schema import Role, ToolCall, Turn

ROLES: Mapping[str, Role] = {
    "human": "user",
    "user": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "claude": "assistant",
    "gemini": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "ai": "assistant",
    "system": "system",
    "developer": "developer",
}
CALL_ROLES = frozenset({"function_call", "tool_call"})
"""Roles of turns whose text is a call, as in LLaMA-Factory's format."""
TOOL_ROLES = CALL_ROLES | frozenset(
    "tool function function_response observation tool_response tool_result ipython "
    "environment".split()
)
"""Roles of messages to or from tools."""

_NUMBERED = re.compile(r"(human|user|assistant|bot|gpt)[-_ ]?(?:\d+|[ab])?")

_FLAGS = ("train", "training", "train_on_turn", "trainable", "loss")
"""Switches for a turn's loss: axolotl's `train` and `training`, ms-swift's `loss`, and similar
ones."""
_OPPOSITE_FLAGS = ("mask", "masked", "ignore_loss")

_UNSUPPORTED = frozenset(
    "tool_responses refusal audio image images video videos audios files attachments train_detail "
    "training_detail tools functions function_calls".split()
)
"""Keys that change the meaning of a turn in ways that no template can represent."""

_OF_TOOLS = ("function_call", "tool_call_id", "tool_calls")
"""Keys of a turn that a template without tools cannot represent."""

TEXT_PARTS = frozenset({"text", "input_text", "output_text"})


@dataclass(frozen=True, slots=True)
class ParsedTurn:
    """Turn and the names of its unknown keys."""

    turn: Turn
    unknown: tuple[str, ...]


def role_of(value: Any, *, tools: bool = False) -> Role:
    """Return the role of a label; a developer is a system where the template has no tools.

    Raises:
        RecordError: The label is a tool's and there are none, or it is not a role.
    """
    name = value.strip().lower() if isinstance(value, str) else ""
    if name in ROLES:
        return "system" if name == "developer" and not tools else ROLES[name]
    if name in TOOL_ROLES:
        if not tools:
            raise unsupported(f"role {name}")
        return "assistant" if name in CALL_ROLES else "tool"
    if numbered := _NUMBERED.fullmatch(name):
        return ROLES[numbered[1]]
    raise RecordError("no role" if value is None else f"unknown role {str(value)[:50]!r}")


def parse_turn(raw: Any, keys: Mapping[str, tuple[str, ...]]) -> ParsedTurn:
    """Parse one message; `keys` has the names of role, text and weight.

    Raises:
        RecordError: The message is not a turn; the detail gives the reason.
    """
    raw = decoded(raw)
    if _is_pairs(raw):  # a map column of Arrow
        raw = dict(raw)
    if not isinstance(raw, dict):
        raise RecordError("not an object")
    role_key, text_key = first_of(raw, keys["role"]), first_of(raw, keys["text"])
    # A null content occurs with tool calls, so those are reported first.
    tools = bool(keys["tools"])
    if len(raw) > 2 or text_key is None:
        check_supported(raw, tools=tools)
    for name in ("role", "text"):
        # If the user named the column and no turn has it, report that.
        if keys[name] != KEYS[name] and raw.keys().isdisjoint(keys[name]):
            raise RecordError(f"no {name}: the turn has none of {', '.join(keys[name])}")
    role = role_of(raw.get(role_key) if role_key else None, tools=tools)
    content = raw[text_key] if text_key else None
    if len(raw) == 2 and role_key and text_key and str(raw[role_key]).lower() not in CALL_ROLES:
        if role == "system" and is_empty(content) and not isinstance(content, str):
            content = ""
        text, unknown = _text(content)
        return ParsedTurn(Turn(role=role, text=text), unknown)
    if role == "system" and is_empty(content) and not isinstance(content, str):
        content = ""
    calls: tuple[ToolCall, ...] = ()
    reasoning, key = "", None
    if role == "assistant" and tools:
        calls, (reasoning, key) = calls_of(raw), reasoning_of(raw)
        if str(raw.get(role_key or "")).strip().lower() in CALL_ROLES:
            calls, content = call_of_text(text_of(content)), ""
    if content is None and (calls or role == "tool"):
        content = ""
    text, unknown = _text(content)
    if role == "system" and str(raw.get("name") or "").startswith("example_"):
        raise unsupported("name: a system turn that is an example of another role's")
    weight, read = loss_weight(raw, keys)
    known = [name for name in (role_key, text_key, key, *read, *_OF_TOOLS) if name]
    answers = role == "tool"
    names = unknown_names(raw, [*known, *(["name"] if answers else [])], "turn.")
    turn = Turn(
        role=role,
        text=text,
        weight=weight,
        reasoning=reasoning,
        tool_calls=calls,
        tool_call_id=str(raw.get("tool_call_id") or "") if answers else "",
        name=str(raw.get("name") or "") if answers else "",
    )
    return ParsedTurn(turn, (*unknown, *names))


def text_of(content: Any) -> str:
    """Return the text of a content: a string, or a list of text parts.

    Raises:
        RecordError: There is no text, or a part is not text.
    """
    return _text(content)[0]


def _text(content: Any) -> tuple[str, tuple[str, ...]]:
    """Return the text and the names of the parts' unknown keys."""
    if isinstance(content, str):
        return checked_text(content), ()
    if isinstance(content, dict):
        content = content["parts"] if isinstance(content.get("parts"), list) else [content]
    parts = as_list(content)
    if not parts:
        raise RecordError("no text")
    texts: list[str] = []
    unknown: list[str] = []
    for part in parts:
        if isinstance(part, str):
            texts.append(checked_text(part))
            continue
        if not isinstance(part, dict):
            raise RecordError("no text")
        kind = str(part.get("type") or "text")
        if kind not in TEXT_PARTS:
            raise unsupported(f"content part {kind[:50]}")
        if not isinstance(part.get("text"), str):
            other = unknown_names(part, {"type", "text"})
            raise unsupported(f"content part {other[0]}") if other else RecordError("no text")
        texts.append(checked_text(part["text"]))
        unknown += unknown_names(part, {"type", "text"}, "turn.content.")
    return "".join(texts), tuple(unknown)


def check_supported(raw: Mapping[str, Any], *, tools: bool) -> None:
    names = _UNSUPPORTED if tools else _UNSUPPORTED.union(_OF_TOOLS)
    for name in sorted(names & raw.keys()):
        if not is_empty(raw[name]):
            raise unsupported(name)


def loss_weight(
    raw: Mapping[str, Any], keys: Mapping[str, tuple[str, ...]]
) -> tuple[float | None, list[str]]:
    """Return the loss weight from the turn's weights and switches, and the keys that hold them.

    Raises:
        RecordError: One of them is not a weight, or two disagree.
    """
    own = [name for name in keys["weight"] if name not in KEYS["weight"] and name in raw]
    weight_keys = own or KEYS["weight"]
    found: dict[str, float] = {}
    for name in weight_keys:
        if raw.get(name) is not None:
            found[name] = weight_of(raw[name], name)
    for name in (*_FLAGS, *_OPPOSITE_FLAGS):
        value = raw.get(name)
        if value is None:
            continue
        if name in _OPPOSITE_FLAGS:
            if not isinstance(value, bool) and value not in (0, 1):
                raise RecordError(f"{name}: neither true nor false: {str(value)[:50]!r}")
            found[name] = 0.0 if value else 1.0
        else:
            found[name] = float(value) if isinstance(value, bool) else weight_of(value, name)
    if len(set(found.values())) > 1:
        raise RecordError(f"{' and '.join(found)} disagree on the turn's loss weight")
    return next(iter(found.values()), None), [*weight_keys, *_FLAGS, *_OPPOSITE_FLAGS]


def _is_pairs(raw: Any) -> bool:
    return (
        isinstance(raw, list)
        and bool(raw)
        and all(isinstance(pair, tuple) and len(pair) == 2 for pair in raw)
        and all(isinstance(pair[0], str) for pair in raw)
    )
