"""Recognize lists of records in JSON text by their first element."""

from __future__ import annotations

import json
import re
from typing import Any

from ochat_ray.data.json_decode import scan

RECORD_KEYS = frozenset(
    """
    chat_messages chosen completion contents conversation conversations data dialog dialogue
    instruction items linear_conversation mapping messages output prompt replies response turns
    """.split()
)
FILE_LISTS = frozenset({"contents", "data", "items"})
"""Keys under which a list of pairs holds a file's records; under others it is one conversation."""

_CONVERSATIONS = frozenset(
    {"conversation", "conversations", "dialog", "dialogue", "messages", "turns"}
)
_ANSWERS = frozenset({"answer", "completion", "output", "response"})
_TURN_KEYS = frozenset({"author", "from", "role", "sender", "speaker", "type"})
"""A record has one of the former keys; a turn, or another part of a record, one of the latter."""

BETWEEN = re.compile("[ \t\r\n,\ufeff]*")
"""Characters between values; the order of commas and byte order marks is not checked."""


def is_record_like(value: Any) -> bool:
    """Return whether the keys are those of a record, not of a turn, a tool or another part."""
    return (
        isinstance(value, dict)
        and not RECORD_KEYS.isdisjoint(value)
        and _TURN_KEYS.isdisjoint(value)
    )


def holds_records(text: str, at: int) -> bool | None:
    """Return whether the object at a position has a list of records; None if more text is needed.

    Only the members before its first list are examined.
    """
    at += 1
    while True:
        at = BETWEEN.match(text, at).end()  # type: ignore[union-attr]
        if text[at : at + 1] not in ('"', ""):
            return False
        try:
            name, at = scan(text, at)
            at = BETWEEN.match(text, at).end()  # type: ignore[union-attr]
            if text[at : at + 1] not in (":", ""):
                return False
            at = BETWEEN.match(text, at + 1).end()  # type: ignore[union-attr]
            if text[at : at + 1] == "[":
                found = is_list_of_records(text, at)
                return found and not (name in _CONVERSATIONS and _begins_with_round(text, at))
            _, at = scan(text, at)
        except (json.JSONDecodeError, RecursionError) as error:
            return _unless_cut_off(text, error)


def is_list_of_records(text: str, at: int) -> bool | None:
    """Return whether the list at a position begins with a record; None if more text is needed."""
    first = _first_element(text, at)
    return None if first is _CUT_OFF else is_record_like(first)


def _begins_with_round(text: str, at: int) -> bool:
    """Return whether the list at a position begins with a pair of texts without an id."""
    first = _first_element(text, at)
    return (
        isinstance(first, dict)
        and not any(isinstance(value, (list, dict)) for value in first.values())
        and not _ANSWERS.isdisjoint(first)
        and "id" not in first
    )


def is_list_of_turns(text: str, at: int) -> bool | None:
    """Return whether the list at a position is one conversation; None if more text is needed."""
    first = _first_element(text, at)
    if first is _CUT_OFF:
        return None
    # Messages of trees, each of which refers to another one, are unordered.
    return isinstance(first, dict) and bool(
        {"from", "role"} & first.keys() and not ({"parent_id", *RECORD_KEYS} & first.keys())
    )


_CUT_OFF = object()


def _first_element(text: str, at: int) -> Any:
    """Decode the first element of the list at a position, if it is an object."""
    if text[at] != "[":
        return None
    at = BETWEEN.match(text, at + 1).end()  # type: ignore[union-attr]
    if text[at : at + 1] not in ("{", ""):
        return None
    try:
        return scan(text, at)[0]
    except (json.JSONDecodeError, RecursionError) as error:
        return _CUT_OFF if _unless_cut_off(text, error) is None else None


def _unless_cut_off(text: str, error: json.JSONDecodeError | RecursionError) -> bool | None:
    if isinstance(error, RecursionError):
        return False
    return None if error.pos >= len(text) - 16 or "Unterminated" in error.msg else False
