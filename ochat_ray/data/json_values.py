"""Read JSON values from a text stream, one at a time, in bounded memory, with error recovery.

Values are decoded in place by the standard library's decoder, which returns the end of each and
accepts the NaN, Infinity and unpaired surrogates that Python writes.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any

from ochat_ray.data.byte_streams import read_exactly
from ochat_ray.data.json_decode import scan
from ochat_ray.data.record_lists import (
    BETWEEN,
    RECORD_KEYS,
    holds_records,
    is_list_of_records,
    is_list_of_turns,
    is_record_like,
)
from ochat_ray.schema import Reason

_CHUNK = 1 << 17
_DEPTH = 900
"""Characters that the decoder has certainly passed when nesting is too deep for it."""
_MAX_TRIES = 1000
"""Maximum positions per chunk of text at which the next record is searched."""
_LONGEST_BREAK = 64
"""Maximum characters between `{` and `"` at the beginning of a record."""

_RECORD_START = re.compile(r'\{[ \t\r\n]{0,60}"')
_STRING_OR_BRACKET = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{}"]', re.DOTALL)
_AFTER_RECORD = re.compile(r"[ \t\r\n]*(?:,[ \t\r\n]*[\[{]|[\]\[{]|\Z)")
_LITERAL_CUT_OFF = re.compile(r"-?[A-Za-z]*\Z")
_NOT_UTF8 = re.compile("[\udc80-\udcff]")
_CLOSED_BY = {"{": "}", "[": "]"}


@dataclass(frozen=True, slots=True)
class Broken:
    """Record that could not be read. `place` is its line (":7") or number from 0 ("#6")."""

    place: str
    reason: Reason
    detail: str


class _Fault(Exception):  # noqa: N818
    """Reason why there is no value at a position; `at` is the position of the error in the text."""

    def __init__(self, reason: Reason, detail: str, at: int) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
        self.at = at


class Values:
    """Reader of records: elements of arrays, of lists in an object, or concatenated values.

    Args:
        stream: UTF-8, without a byte order mark.
        max_size: Maximum characters per record.
    """

    def __init__(self, stream: IO[bytes], max_size: int) -> None:
        self._stream = stream
        self._max_size = max_size
        self._undecoded = b""
        # Decoded but unconsumed text begins at `_at`; the last value at `_start`.
        self._text = ""
        self._start = self._at = 0
        self._ended = False
        self._all_utf8 = True
        self._closers: list[str] = []
        self._known_keys: frozenset[str] = frozenset()
        self._count = 0
        self._recovered = False

    def records(self) -> Iterator[Any]:
        """Yield the records, and a `Broken` for each fault; reading continues after it."""
        while self._find_next():
            first = self._text[self._at]
            if self._closers and first == self._closers[-1]:
                self._closers.pop()
                self._at += 1
            elif self._recovered and not self._closers and first in "]}":
                self._at += 1  # of the list or object that contained the fault
            elif self._opens_list(first):
                self._closers.append(_CLOSED_BY[first])
                self._at += 1
            else:
                yield from self._next_record()
        if self._closers:
            detail = f"the file ends before its closing {self._closers[-1]}"
            yield self._broken(Reason.TORN, detail)

    def _next_record(self) -> Iterator[Any]:
        try:
            if self._closers[-1:] == ["}"]:
                self._enter_member()
                return
            record = self._value()
            self._check_utf8()
        except _Fault as fault:
            broken, record = self._recover(fault)
            yield broken
            self._count += 1
            if record is None:
                return
        if isinstance(record, dict):
            self._known_keys = frozenset(record)
        yield record
        self._count += 1

    def _opens_list(self, first: str) -> bool:
        """Return whether records follow inside: in an array, or an object with a list of them."""
        if self._closers:
            return False
        if first != "{" or not self._look_ahead(holds_records):
            return first == "[" and not self._look_ahead(is_list_of_turns)
        try:
            scan(self._text, self._at)
        except (json.JSONDecodeError, RecursionError):
            return True
        return (
            not self._all_utf8
        )  # a small one is a value like others, whose records are found in it

    def _enter_member(self) -> None:
        """Enter a list of records in an object that holds records, or skip another member."""
        key = self._value()
        if not isinstance(key, str) or not self._find_next() or self._text[self._at] != ":":
            raise _Fault(Reason.MALFORMED, "no key and colon in the outer object", self._at)
        self._at += 1
        if not self._find_next():
            return
        if self._look_ahead(is_list_of_records):
            self._closers.append("]")
            self._at += 1
        else:
            self._value()

    def _look_ahead(self, test: Callable[[str, int], bool | None]) -> bool:
        """Apply a test at the current position, with more text as long as it returns None."""
        while (answer := test(self._text, self._at)) is None:
            if len(self._text) - self._at > self._max_size or not self._fill():
                return False
        return answer

    def _find_next(self) -> bool:
        """Advance to the next character that is not blank, comma or mark; False at the end."""
        while True:
            self._at = BETWEEN.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text):
                return True
            if not self._fill():
                return False

    def _fill(self) -> bool:
        """Read more text, doubling the buffer; return False at the stream's end."""
        rest = self._text[self._at :]
        if not self._all_utf8:
            self._all_utf8 = not _NOT_UTF8.search(rest)
        more = ""
        if not self._ended:
            size = min(len(rest), self._max_size + 1 - len(rest))
            data = read_exactly(self._stream, max(_CHUNK, size))
            self._ended = not data
            data = self._undecoded + data
            try:
                more, taken = codecs.utf_8_decode(data, "strict", self._ended)
            except UnicodeDecodeError:
                more, taken = codecs.utf_8_decode(data, "surrogateescape", self._ended)
                self._all_utf8 = False
            self._undecoded = data[taken:]
        self._text, self._at = rest + more, 0
        return bool(more) or not self._ended

    def _value(self) -> Any:
        """Decode the value at the current position and advance past it; without one, stay."""
        while True:
            self._start = self._at
            try:
                value, end = scan(self._text, self._at)
            except RecursionError:
                at = min(self._at + _DEPTH, len(self._text))
                raise _Fault(Reason.MALFORMED, "nested too deeply", at) from None
            except json.JSONDecodeError as error:
                at, detail = error.pos, error.msg
            else:
                # A number may continue in text that has not been read yet.
                if end == len(self._text) and self._text[end - 1] not in '}]"' and self._fill():
                    continue
                length = end - self._start
                if length > self._max_size:
                    raise _Fault(Reason.TOO_LARGE, self._too_large(), self._at + length)
                self._start, self._at = self._at, self._at + length
                return value
            unterminated = detail.startswith("Unterminated string")
            if not unterminated and at < len(self._text) - 16:
                raise _Fault(Reason.MALFORMED, detail, at)
            if len(self._text) - self._at > self._max_size:
                raise _Fault(Reason.TOO_LARGE, self._too_large(), len(self._text))
            at -= self._at
            if not self._fill():
                torn = unterminated or "escape" in detail
                torn = torn or bool(_LITERAL_CUT_OFF.match(self._text.rstrip(), at))
                raise _Fault(Reason.TORN if torn else Reason.MALFORMED, detail, at)

    def _too_large(self) -> str:
        return f"a record over {self._max_size:,} bytes"

    def _check_utf8(self) -> None:
        """Raise a fault if the last value has bytes that are not UTF-8."""
        if self._all_utf8:
            return
        if bad := _NOT_UTF8.search(self._text, self._start, self._at):
            end, self._at = self._at, self._start
            byte = ord(bad[0]) - 0xDC00
            raise _Fault(Reason.MALFORMED, f"byte 0x{byte:02x} is not UTF-8", end)

    def _recover(self, fault: _Fault) -> tuple[Broken, Any]:
        """Skip the broken record; return its fault, and the next record if there is one.

        If its brackets match, the record ends with them. Otherwise the next object is searched that
        can be read and has a record's keys, which a turn of the broken record does not have.
        """
        self._recovered = True
        by_brackets = bool(self._closers) and fault.reason != Reason.TOO_LARGE
        if by_brackets and (end := self._end_by_brackets()) is not None:
            lost = _bytes(self._text[self._at : end])
            self._at = end
            detail = f"{fault.detail}; the record of {lost:,} bytes was not read"
            return self._broken(Reason.MALFORMED, detail), None
        lost, record = self._seek_record(fault)
        reason, detail = fault.reason, fault.detail
        if record is not None:
            reason = Reason.MALFORMED if reason == Reason.TORN else reason
            if self._closers[-1:] == ["}"]:
                self._closers.append("]")
        else:
            self._closers.clear()
            if reason == Reason.TORN:
                detail = f"the file ends in the middle of a record ({detail})"
        return self._broken(reason, f"{detail}; {lost:,} bytes were not read"), record

    def _end_by_brackets(self) -> int | None:
        """Return the end of the value at the current position, if its brackets and quotes match."""
        while True:
            open_brackets: list[str] = []
            for match in _STRING_OR_BRACKET.finditer(self._text, self._at):
                mark = match[0]
                if mark in _CLOSED_BY:
                    open_brackets.append(_CLOSED_BY[mark])
                elif len(mark) == 1 and mark == '"':  # of an unterminated string
                    break
                elif mark in "]}":
                    if not open_brackets or open_brackets.pop() != mark:
                        return None
                    if not open_brackets:
                        end = match.end()
                        return end if _AFTER_RECORD.match(self._text, end) else None
                elif not open_brackets or mark[1:-1].strip() in (":", ","):
                    # The latter occurs between strings: a quote is missing before it.
                    return None
            if len(self._text) - self._at > self._max_size or not self._fill():
                return None

    def _seek_record(self, fault: _Fault) -> tuple[int, Any]:
        """Return the number of skipped bytes and the next record, or None at the stream's end."""
        lost = tries = 0
        step = _DEPTH
        search_from = fault.at if fault.detail == "nested too deeply" else self._at + 1
        while True:
            match = _RECORD_START.search(self._text, search_from)
            go_to = match.start() if match else max(self._at, len(self._text) - _LONGEST_BREAK)
            lost += _bytes(self._text[self._at : go_to])
            search_from = max(0, search_from - go_to)
            self._at = go_to
            if match is None:
                if not self._fill():
                    lost += _bytes(self._text)
                    self._at = len(self._text)
                    return lost, None
                continue
            try:
                value = self._value()
                if isinstance(value, dict) and self._is_record(value):
                    self._check_utf8()
                    return lost, value
                lost += _bytes(self._text[self._start : self._at])
                search_from = self._at
            except _Fault as again:
                tries += 1
                search_from = self._at + 1
                if again.reason == Reason.TOO_LARGE or tries % _MAX_TRIES == 0:
                    search_from = len(self._text)
                elif again.detail == "nested too deeply":
                    # Each attempt costs the decoder's full depth, far more since Python 3.12.
                    search_from = min(self._at + step, len(self._text))
                    step = min(2 * step, _CHUNK)

    def _is_record(self, value: dict[str, Any]) -> bool:
        if not self._known_keys:
            return is_record_like(value)
        if needed := self._known_keys & RECORD_KEYS:
            return not needed.isdisjoint(value)
        return 2 * len(self._known_keys.intersection(value)) >= min(
            len(self._known_keys), len(value)
        )

    def _broken(self, reason: Reason, detail: str) -> Broken:
        return Broken(f"#{self._count}", reason, f"after {self._count:,} records: {detail}")


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogateescape"))
