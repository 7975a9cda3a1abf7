"""Decoding of one JSON value as Python writes it, with NaN and halves of surrogate pairs."""

from __future__ import annotations

import json
from typing import Any

import orjson


def _integer(digits: str) -> int | float:
    # Python refuses to convert more than 4,300 digits, for the time it takes.
    return int(digits) if len(digits) < 400 else float(digits)


scan = json.JSONDecoder(parse_int=_integer).raw_decode
"""Decode the value at a place of a text; return it and its end.

Raises JSONDecodeError or RecursionError.
"""


def decode(data: bytes) -> Any:
    """Decode one JSON value, with the NaN, Infinity and halves of surrogate pairs of Python's.

    Raises:
        ValueError: it is not JSON, not UTF-8, or nested too deeply.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        try:
            text = data.decode().strip("\ufeff \t\r\n")
            value, end = scan(text, 0)
        except RecursionError:
            raise ValueError("nested too deeply") from None
        if end != len(text):
            raise ValueError(f"{len(text) - end:,} characters after its end") from error
        return value
