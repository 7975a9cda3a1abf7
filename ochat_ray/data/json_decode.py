"""Decode JSON as written by Python, with NaN and unpaired surrogates."""

from __future__ import annotations

import json
from typing import Any

import orjson


def _integer(digits: str) -> int | float:
    # Python refuses to convert more than 4,300 digits, because of the time it takes.
    return int(digits) if len(digits) < 400 else float(digits)


scan = json.JSONDecoder(parse_int=_integer).raw_decode
"""Decode the value at a position of a text; return it and its end.

Raises JSONDecodeError or RecursionError.
"""


def decode(data: bytes) -> Any:
    """Decode one JSON value, allowing Python's NaN, Infinity and unpaired surrogates.

    Raises:
        ValueError: The data is not JSON, not UTF-8, or nested too deeply.
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
