"""Decode turbo-stream, React Router's serialization of loader data.

The first line is a JSON array of values, the first of which is the root. Containers hold indices
into the array instead of values: {"_3": 5} has the key at 3 and the value at 5. Negative indices
are constants, and arrays whose first element is a string are types that JSON does not have: ["D",
ms] a date, ["P", id] a promise. A line "P3:[...]" holds the value of promise 3 and appends its
array to the values; "E3:[...]" is the error that rejected it.

Source: the format of turbo-stream 2 in React Router 7 (vendor/turbo-stream-v2).
"""

from __future__ import annotations

import json
import math
from typing import Any

UNDEFINED: Any = object()
"""JavaScript's undefined; keys with this value are left out of objects."""

_CONSTANTS: dict[int, Any] = {
    -1: UNDEFINED,  # a hole in an array
    -2: math.nan,
    -3: -math.inf,
    -4: -0.0,
    -5: None,
    -6: math.inf,
    -7: UNDEFINED,
}
_SCALARS = frozenset("DUBRY")
"""Date, URL, big integer, regular expression and symbol: decoded as text or number."""

_LINKS = frozenset({"P", "Z", "SingleFetchClassInstance"})
"""Promise, reference to an earlier value, and class instance: decoded as the value they refer
to."""

_ABSENT = frozenset(
    {"E", "SanitizedError", "ErrorResponse", "SingleFetchRedirect", "SingleFetchFallback"}
)


class TurboStreamError(ValueError):
    """Text that is not turbo-stream, or truncated."""


def decode(text: str) -> Any:
    """Return the root value of a stream. Values that are used twice are shared.

    Raises:
        TurboStreamError: The stream cannot be decoded.
    """
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        raise TurboStreamError("an empty stream")
    values: list[Any] = []
    root = _append(values, lines[0])
    promises: dict[int, int] = {}
    for line in lines[1:]:
        number, colon, data = line[1:].partition(":")
        if line[0] not in "PE" or not colon or not _is_index(number):
            raise TurboStreamError(f"a line that begins with {line[:20]!r}")
        index = _append(values, data)
        promises[int(number)] = index if line[0] == "P" else -7
    return _Decoder(values, promises).value(root)


def _append(values: list[Any], line: str) -> int:
    """Append a line's values; return the index of the first, or its constant."""
    try:
        parsed = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise TurboStreamError(f"not JSON: {error}") from error
    if type(parsed) is int:
        return parsed
    if not isinstance(parsed, list) or not parsed:
        raise TurboStreamError("a line must be an array or a number")
    start = len(values)
    values += parsed
    return start


def _is_index(text: str) -> bool:
    return text.isdecimal() and len(text) < 12


def _kind_of(value: Any) -> str | None:
    """Return the type of a value that JSON does not have; None for others."""
    is_typed = isinstance(value, list) and value and isinstance(value[0], str)
    return str(value[0]) if is_typed else None


class _Decoder:
    """Decoder that creates all containers empty first, so that depth and cycles do not matter."""

    def __init__(self, values: list[Any], promises: dict[int, int]) -> None:
        self._values = values
        self._promises = promises
        self._shells = [self._shell(value) for value in values]
        for value, shell in zip(values, self._shells, strict=True):
            self._fill(value, shell)

    def value(self, index: Any) -> Any:
        """Return the value that an index refers to."""
        for _ in range(len(self._values) + 1):  # references may form a cycle
            if type(index) is not int:
                raise TurboStreamError(f"{str(index)[:50]!r} is not an index")
            if index < 0:
                if index not in _CONSTANTS:
                    raise TurboStreamError(f"no constant {index}")
                return _CONSTANTS[index]
            if index >= len(self._values):
                raise TurboStreamError(f"no value {index} of {len(self._values)}")
            value = self._values[index]
            kind = _kind_of(value)
            if kind not in _LINKS:
                return self._shells[index]
            index = value[1] if len(value) > 1 else None
            if kind == "P" and type(index) is int:
                index = self._promises.get(index, -7)
        raise TurboStreamError("values that name each other")

    def _shell(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {}
        if not isinstance(value, list):
            return value
        kind = _kind_of(value)
        if kind is None or kind in ("S", "M"):
            return []
        if kind == "N":
            return {}
        if kind in _SCALARS:
            return value[1] if len(value) > 1 else None
        if kind in _LINKS or kind in _ABSENT:
            return UNDEFINED
        raise TurboStreamError(f"a value of the unknown type {kind[:50]!r}")

    def _fill(self, value: Any, shell: Any) -> None:
        if _kind_of(value) == "N":
            value = value[1] if len(value) > 1 and isinstance(value[1], dict) else {}
        if isinstance(value, dict):
            for key, index in value.items():
                number = key[1:]
                if key[:1] != "_" or not _is_index(number):
                    raise TurboStreamError(f"{key[:50]!r} is not the index of a key")
                name, content = self.value(int(number)), self.value(index)
                if not isinstance(name, str):
                    raise TurboStreamError("a key that is not text")
                if content is not UNDEFINED:
                    shell[name] = content
        elif isinstance(value, list) and isinstance(shell, list):
            indices = value if _kind_of(value) is None else value[1:]
            found = map(self.value, indices)
            shell.extend(None if content is UNDEFINED else content for content in found)
