"""Validated access to JSON values of records: text, numbers and names."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ochat_ray.schema import Reason

MAX_UNKNOWN_KEYS = 100
"""Maximum names of unknown keys per conversation; real records have a few dozen."""


class RecordError(ValueError):
    """Record that is not a conversation, with the reason for the table of drops."""

    def __init__(self, detail: str, reason: Reason = Reason.MALFORMED) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = valid_utf8(detail)


def unsupported(detail: str) -> RecordError:
    """Return the error for a record that requests something unsupported."""
    return RecordError(detail, Reason.UNSUPPORTED)


def label(value: Any) -> str | None:
    """Return a short text of the record in valid UTF-8, or None."""
    if value is None or value == "" or isinstance(value, (dict, list, bool)):
        return None
    return valid_utf8(str(value)[:500])


def valid_utf8(text: str) -> str:
    """Replace unpaired surrogates, which UTF-8 cannot represent."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def checked_text(text: str) -> str:
    """Return the text unchanged.

    Raises:
        RecordError: The text contains an unpaired surrogate.
    """
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise RecordError("an unpaired surrogate, which UTF-8 cannot represent") from None
    return text


def is_empty(value: Any) -> bool:
    """Return whether a value is empty: null, "", [], {}, or a string of one of these."""
    if isinstance(value, str):
        return "".join(value.split()) in ("", "null", "None", "[]", "{}")
    return value is None or (isinstance(value, (list, tuple, dict)) and not value)


def decoded(value: Any) -> Any:
    """Return the decoded value of a JSON string, as found in table columns; others unchanged."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def as_dict(value: Any) -> dict[str, Any]:
    """Return the value if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    """Return the value if it is a list, else an empty one."""
    return list(value) if isinstance(value, (list, tuple)) else []


def first_of(item: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """Return the first of the names whose value is not null."""
    return next((name for name in names if item.get(name) is not None), None)


def weight_of(value: Any, name: str) -> float:
    """Return a validated loss weight.

    Raises:
        RecordError: The value is not a finite number of at least 0, as a float32.
    """
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise RecordError(f"{name}: a loss weight must be a number, not {str(value)[:50]!r}")
    try:
        (weight,) = struct.unpack("<f", struct.pack("<f", value))
    except (OverflowError, struct.error):
        weight = math.inf
    if not 0.0 <= weight < math.inf:
        raise RecordError(f"{name}: a loss weight must be finite and at least 0, not {value}")
    return float(value) if weight else 0.0


def _printable(name: str) -> str:
    """Replace characters that terminals and tables do not show, such as escape sequences."""
    if name.isprintable():
        return name
    return "".join(char if char.isprintable() else "\ufffd" for char in name)


def unknown_names(item: Mapping[str, Any], known: Iterable[str], prefix: str = "") -> list[str]:
    """Return the names of unknown keys whose value is not empty."""
    known = frozenset(known)
    return [
        _printable(f"{prefix}{name}"[:100])
        for name, value in item.items()
        if name not in known and not is_empty(value)
    ]


def once_each(names: Iterable[str]) -> tuple[str, ...]:
    """Return the distinct names, sorted; beyond the limit the rest is one entry."""
    found = sorted(set(names))
    if len(found) > MAX_UNKNOWN_KEYS:
        found = [*found[:MAX_UNKNOWN_KEYS], "other keys"]
    return tuple(found)
