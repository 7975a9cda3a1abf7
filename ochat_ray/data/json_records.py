"""Read records from a stream of JSON in any layout.

The layout is an array, lines, concatenated values, or an object that holds records in a list. It is
detected from the content, not from the file's name. Memory is bounded by the largest record. An
unreadable record is yielded as `Broken`, and reading continues at the next record.
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from typing import IO, Any, cast

from ochat_ray.data.byte_streams import ByteStream, Prefixed, read_exactly
from ochat_ray.data.json_decode import decode, scan
from ochat_ray.data.json_values import Broken, Values
from ochat_ray.data.record_lists import holds_records
from ochat_ray.schema import Reason

MAX_RECORD_BYTES = 64 * 2**20
"""Maximum size of one record in bytes; in an array, where text is decoded first, in characters."""

_SNIFFED = 1 << 16
_CHUNK = 1 << 20
_MANY_BLANK_LINES = 1000
"""Blank lines skipped at a time: compressed data may unpack to a billion blank lines."""

_BETWEEN = " \t\r\n,\ufeff"

_BOMS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",  # before UTF-16's, which is a prefix of it
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}


def json_records(
    stream: IO[bytes], *, by_lines: bool, max_size: int = MAX_RECORD_BYTES
) -> Iterator[Any]:
    """Yield the decoded records of a stream, and a `Broken` for each unreadable one.

    A small object that holds lists of records is yielded unchanged; a large or broken one is
    yielded as its records. `by_lines` gives the layout if it cannot be detected.
    """
    head = read_exactly(stream, _SNIFFED)
    encoding, bom = _encoding(head)
    whole = cast(IO[bytes], Prefixed(head[bom:], stream))
    if encoding != "utf-8":
        whole = cast(IO[bytes], _Transcoded(whole, encoding))
        head, bom = read_exactly(whole, _SNIFFED), 0
        whole = cast(IO[bytes], Prefixed(head, whole))
    if _has_lines(head[bom:].decode("utf-8", "replace"), by_lines):
        yield from _lines(whole, max_size)
    else:
        yield from Values(whole, max_size).records()


def _encoding(head: bytes) -> tuple[str, int]:
    """Return the encoding of JSON with this beginning, and the length of its byte order mark."""
    for bom, encoding in _BOMS.items():
        if head.startswith(bom):
            return encoding, len(bom)
    # JSON begins with ASCII, whose other bytes are zero in these encodings.
    zeros = "".join("0" if byte == 0 else "x" for byte in head[:4])
    without_mark = {
        "x000": "utf-32-le",
        "000x": "utf-32-be",
        "x0x0": "utf-16-le",
        "0x0x": "utf-16-be",
    }
    return without_mark.get(zeros, "utf-8"), 0


class _Transcoded(ByteStream):
    """UTF-8 view of a stream in another encoding, in which unpaired surrogates are invalid."""

    def __init__(self, stream: IO[bytes], encoding: str) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
        self._rest = b""

    def read_some(self, size: int) -> bytes:
        while not self._rest:
            data = self._stream.read(_CHUNK)
            self._rest = self._decoder.decode(data, final=not data).encode("utf-8", "surrogatepass")
            if not data:
                break
        piece, self._rest = self._rest[:size], self._rest[size:]
        return piece


def _has_lines(head: str, by_lines: bool) -> bool:
    """Decide from a stream's beginning whether each line is a separate record."""
    head = head.lstrip(_BETWEEN)
    if head.startswith("[") or (head.startswith("{") and holds_records(head, 0)):
        return False
    try:
        _, end = scan(head, 0)
    except (ValueError, RecursionError):
        return by_lines
    rest = head[end:].lstrip(" \t")
    if "\n" in head[:end]:
        return False
    return rest == "" or rest.startswith(("\n", "\r\n"))


def _lines(stream: IO[bytes], max_size: int) -> Iterator[Any]:
    reader = io.BufferedReader(cast(io.RawIOBase, stream), _CHUNK)
    number = blank = 0
    while line := reader.readline(max_size):
        number += 1
        blank = blank + 1 if len(line) <= 2 and line.isspace() else 0
        if blank > _MANY_BLANK_LINES:
            number += _pass_blank_lines(reader)
        ends = line.endswith(b"\n")
        if not ends and len(line) == max_size:
            while (rest := reader.readline(_CHUNK)) and not rest.endswith(b"\n"):
                pass
            yield _broken_line(number, Reason.TOO_LARGE, f"over {max_size:,} bytes")
        elif not line.isspace():
            yield _record_of_line(line, number, torn=not ends)


def _pass_blank_lines(reader: io.BufferedReader[Any]) -> int:
    """Read the blanks at the beginning of the buffer; return the number of lines they end."""
    there = reader.peek()
    blanks = there[: len(there) - len(there.lstrip(b" \t\r\n"))]
    reader.read(len(blanks))
    return blanks.count(b"\n")


def _record_of_line(line: bytes, number: int, *, torn: bool) -> Any:
    try:
        return decode(line)
    except UnicodeDecodeError as error:
        torn = torn and error.end == len(line)
        detail = f"byte 0x{line[error.start]:02x} is not UTF-8"
    except ValueError as error:
        detail = str(error)
    return _broken_line(number, Reason.TORN if torn else Reason.MALFORMED, detail)


def _broken_line(number: int, reason: Reason, detail: str) -> Broken:
    return Broken(f":{number}", reason, f"line {number}: {detail}")
