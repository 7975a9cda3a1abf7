"""Limits on the cost of compiling a JSON Schema."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

MOST_REPETITIONS = 2000
"""Largest count that is unrolled, in a schema or in a pattern; llama.cpp's limit, too."""

LARGE_COUNT = 100
LARGE_SCHEMA = 1 << 16
"""Counts, and bytes of a schema, from which `is_costly` is true."""

_COUNTS = frozenset("minItems maxItems minProperties maxProperties minContains maxContains".split())
_PATTERNS = frozenset({"pattern", "patternProperties", "propertyNames"})
_VALUES = frozenset({"const", "enum", "default", "examples"})
"""Keywords whose values are data and not schemas."""

_REPETITION = re.compile(r"\{(\d+)(?:,(\d*))?\}")


def check_counts(schema: Any) -> None:
    """Reject counts that a compiler would unroll, such as `minItems` of a billion.

    Raises:
        ValueError: The text names the keyword and its limit.
    """
    for keyword, value in _keywords(schema):
        if keyword in _COUNTS and _is_number(value) and value > MOST_REPETITIONS:
            raise ValueError(f"{keyword} is {value:.6g}, of at most {MOST_REPETITIONS}")
        for pattern in _patterns_of(keyword, value):
            if (count := _largest_repetition(pattern)) > MOST_REPETITIONS:
                raise ValueError(
                    f"{keyword} repeats up to {count:.6g} times, of at most {MOST_REPETITIONS}"
                )


def is_costly(schema: str, parsed: Any) -> bool:
    """Return whether the cost of compiling a schema cannot be estimated from its size.

    Types, properties, enumerations and references cost about as much as their length. Divisors,
    patterns and large counts can cost gigabytes or minutes.
    """
    if len(schema) > LARGE_SCHEMA:
        return True
    return any(
        keyword == "multipleOf"
        or keyword in _PATTERNS
        or (keyword in _COUNTS and _is_number(value) and value > LARGE_COUNT)
        for keyword, value in _keywords(parsed)
    )


def _keywords(schema: Any) -> Iterator[tuple[str, Any]]:
    pending = [schema]
    while pending:
        value = pending.pop()
        if isinstance(value, Mapping):
            for keyword, inner in value.items():
                yield keyword, inner
                if keyword not in _VALUES and isinstance(inner, (Mapping, list)):
                    pending.append(inner)
        elif isinstance(value, list):
            pending += [inner for inner in value if isinstance(inner, (Mapping, list))]


def _patterns_of(keyword: str, value: Any) -> list[str]:
    if keyword == "pattern" and isinstance(value, str):
        return [value]
    if keyword == "patternProperties" and isinstance(value, Mapping):
        return list(value)
    return []


def _largest_repetition(pattern: str) -> int:
    digits = [
        number for found in _REPETITION.finditer(pattern) for number in found.groups() if number
    ]
    # Longer numbers are rejected anyway, and int() would reject thousands of digits.
    return max((int(number[:12]) for number in digits), default=0)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
