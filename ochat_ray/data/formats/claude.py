"""Claude's data export: `chat_messages` of blocks, from a human or the assistant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ochat_ray.data.formats.trees import OTHER_BRANCH, Branches, leaves_of, paths_of
from ochat_ray.data.formats.turns import role_of
from ochat_ray.data.formats.values import (
    RecordError,
    as_dict,
    as_list,
    checked_text,
    is_empty,
    label,
    once_each,
    unknown_names,
    unsupported,
    valid_utf8,
)
from ochat_ray.schema import Conversation, Turn

_LEFT_OUT = frozenset({"thinking", "redacted_thinking", "token_budget", "flag"})
_MESSAGE_KEYS = frozenset(
    "uuid text content sender attachments files files_v2 parent_message_uuid".split()
)
_RECORD_KEYS = frozenset("uuid name chat_messages model current_leaf_message_uuid".split())
_BLOCK_KEYS = frozenset({"type", "text"})


def is_claude(item: Mapping[str, Any]) -> bool:
    """Return whether a record is in the format of Claude's export."""
    return isinstance(item.get("chat_messages"), list)


def conversations_of(item: Mapping[str, Any], branches: Branches) -> list[Conversation]:
    """Return the conversations of a record: one, or one per branch.

    Raises:
        RecordError: a message cannot be read.
    """
    messages = [as_dict(message) for message in as_list(item.get("chat_messages"))]
    names = [label(m.get("uuid")) or f"message {n}" for n, m in enumerate(messages)]
    by_name = dict(zip(names, messages, strict=True))
    if len(by_name) < len(names):
        raise RecordError("two messages with one uuid")
    parents: dict[str, str | None] = {}
    for number, (name, message) in enumerate(zip(names, messages, strict=True)):
        before = names[number - 1] if number else None
        parent = label(message.get("parent_message_uuid"))
        # The first message's parent is a uuid without a message.
        parents[name] = before if parent is None else parent if parent in by_name else None
    current = label(item.get("current_leaf_message_uuid"))
    if current not in by_name:
        current = names[-1] if names else None
    paths = paths_of(parents, current, branches) if names else [[]]
    other = len(leaves_of(parents)) - 1 if branches == "current" and names else 0
    record = label(item.get("uuid")) or ""
    found = []
    for path in paths:
        unknown = unknown_names(item, _RECORD_KEYS)
        left_out: list[str] = []
        turns = [_turn(by_name[name], unknown, left_out) for name in path]
        found.append(
            Conversation(
                id=f"{record}#{valid_utf8(path[-1])}" if record and len(paths) > 1 else record,
                source="",
                turns=tuple(turns),
                model=label(item.get("model")) or "claude",
                title=label(item.get("name")),
                unknown_keys=once_each(unknown),
                left_out=(*left_out, *[OTHER_BRANCH] * other),
            )
        )
    return found


def _turn(message: Mapping[str, Any], unknown: list[str], left_out: list[str]) -> Turn:
    for name in ("attachments", "files", "files_v2"):
        if not is_empty(message.get(name)):
            raise unsupported(name)
    unknown += unknown_names(message, _MESSAGE_KEYS, "message.")
    role = role_of(message.get("sender"))
    texts: list[str] = []
    apart = False
    for block in as_list(message.get("content")):
        block = as_dict(block)
        kind = str(block.get("type") or "text")
        if kind in _LEFT_OUT:
            left_out.append(kind)
            apart = bool(texts)
            continue
        if kind != "text" or not isinstance(block.get("text"), str):
            raise unsupported(f"content block {kind[:50]}")
        unknown += unknown_names(block, _BLOCK_KEYS, "message.content.")
        # Consecutive blocks are one text, split where a citation begins.
        texts += ["\n\n"] * apart + [checked_text(block["text"])]
        apart = False
    if not texts:
        if not isinstance(message.get("text"), str):
            raise RecordError("no text")
        texts = [checked_text(message["text"])]
    return Turn(role=role, text="".join(texts))
