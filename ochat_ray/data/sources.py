"""Conversations from files: share pages, ShareGPT JSON or JSON lines, OpenAI messages, Parquet.

Files and archives are streamed; one conversation at a time is a Python object. What cannot be read
comes out as a `Drop`, never as an exception.
"""

from __future__ import annotations

import codecs
import io
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import ijson
import orjson
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from ochat_ray.data import archives
from ochat_ray.data.inputs import ARCHIVES, is_page
from ochat_ray.data.share_page import MAX_PAGE_BYTES, Unusable, page_record
from ochat_ray.run_dir import open_location
from ochat_ray.schema import Conversation, Drop, Reason, Role, Stage, Turn

MAX_CHARACTERS = 8_000_000
"""Of one conversation; a book has a million."""

MAX_LINE_BYTES = 64 * 2**20
"""Of a record in JSON lines."""

ROLES: Mapping[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "assistant": "assistant",
    "system": "system",
}

_LINES = (".jsonl", ".ndjson")
# A turn that is one block of HTML from its first character to its last.
_BLOCK_HTML = re.compile(
    r"\s*(?:\d+ / \d+\s*)?<(?:div|p|pre|ol|ul|h[1-6]|table|blockquote)[\s>].*</?\w+>\s*\Z",
    re.DOTALL | re.IGNORECASE,
)
READ_AHEAD = 16
"""Files that are fetched at a time from a remote store, where each costs a round trip."""


def read_files(uris: Sequence[str]) -> Iterator[Conversation | Drop]:
    """Every conversation of the files, in order, and a `Drop` for everything else in them."""
    if len(uris) > 1 and "://" in uris[0]:
        with ThreadPoolExecutor(READ_AHEAD) as pool:
            for uri, page in zip(uris, pool.map(_page_bytes, uris), strict=True):
                yield _parse_page(page, uri)
        return
    for uri in uris:
        yield from read_file(uri)


def read_file(uri: str) -> Iterator[Conversation | Drop]:
    """Every conversation of one file, and a `Drop` for everything in it that is none."""
    name = uri.lower()
    if is_page(name):
        yield _parse_page(_page_bytes(uri), uri)
    elif name.endswith(".zip"):
        yield from archives.zip_pages(uri, _parse_page)
    elif name.endswith(ARCHIVES):
        yield from archives.tar_pages(uri, _parse_page)
    else:
        for index, item in enumerate(_items(uri)):
            if isinstance(item, Drop):
                yield item
            else:
                yield parse_item(item, source=uri, index=index)


def _page_bytes(uri: str) -> bytes | Unusable:
    try:
        if "://" not in uri:  # for a small file faster than through Arrow
            with open(uri, "rb") as file:
                return file.read(MAX_PAGE_BYTES + 1)
        fs, path = open_location(uri)
        with fs.open_input_stream(path, compression=None) as stream:
            return bytes(stream.read(MAX_PAGE_BYTES + 1))
    except (FileNotFoundError, PermissionError) as error:
        return Unusable(Reason.UNREADABLE, str(error).split("\n")[0])


def _parse_page(page: bytes | Unusable, source: str) -> Conversation | Drop:
    record = page if isinstance(page, Unusable) else page_record(page)
    stem = posixpath.basename(source).split(".")[0]
    if isinstance(record, Unusable):
        return Drop(
            id=stem, source=source, stage=Stage.READ, reason=record.reason, detail=record.detail
        )
    record["id"] = record["id"] or stem
    return parse_item(record, source=source, index=0, html=True)


def parse_item(
    item: Any, *, source: str, index: int, html: bool | None = None
) -> Conversation | Drop:
    """One conversation from a decoded record; `index` counts the file's records from 0.

    Records are {id?, model?, title?, and one of conversations, items, messages or turns}; a turn
    is {from, value}, {role, content} or {role, text}. `html` says whether the answers are ChatGPT's
    rendered HTML; where it is None, they are looked at.
    """
    name = f"{posixpath.basename(source)}#{index}"

    def malformed(detail: str) -> Drop:
        return Drop(
            id=name, source=source, stage=Stage.READ, reason=Reason.MALFORMED, detail=detail
        )

    if not isinstance(item, dict):
        return malformed(f"a record must be an object, not {type(item).__name__}")
    # A Parquet file of mixed records has all columns, and nulls in those that a record lacks.
    names = ("conversations", "items", "messages", "turns")
    raw_turns = next((item[n] for n in names if isinstance(item.get(n), list)), None)
    if raw_turns is None:
        return malformed(f"no list named {', '.join(names[:-1])} or {names[-1]}")
    if item.get("id"):
        name = _label(item["id"]) or name

    turns = []
    for position, raw in enumerate(raw_turns):
        turn = _parse_turn(raw)
        if isinstance(turn, str):
            return malformed(f"turn {position}: {turn}")
        turns.append(turn)
    if sum(len(turn.text) for turn in turns) > MAX_CHARACTERS:
        return replace(malformed(f"over {MAX_CHARACTERS:,} characters"), reason=Reason.TOO_LARGE)
    return Conversation(
        id=name,
        source=source,
        turns=tuple(turns),
        model=_label(item.get("model")),
        title=_label(item.get("title")),
        html=_is_html(turns) if html is None else html,
    )


def _label(value: Any) -> str | None:
    """A short text of the record's, in what UTF-8 can hold."""
    return str(value)[:500].encode("utf-8", "replace").decode() if value else None


def _is_html(turns: Sequence[Turn]) -> bool:
    """Whether a dump's answers are ChatGPT's HTML: each of them is, from end to end.

    One answer alone may be a model's HTML code; ChatGPT's has a paragraph or its own box.
    """
    answers = [turn.text for turn in turns if turn.role == "assistant"]
    return (
        bool(answers)
        and all(_BLOCK_HTML.match(answer) for answer in answers)
        and any("<p>" in a or 'class="markdown' in a for a in answers)
    )


def _parse_turn(raw: Any) -> Turn | str:
    """A turn, or what is wrong with it."""
    if not isinstance(raw, dict):
        return "not an object"
    label, text = raw.get("from"), raw.get("value")
    if label is None:
        label = raw.get("role")
    if text is None:
        text = raw.get("content") if raw.get("content") is not None else raw.get("text")
    if isinstance(text, list):  # OpenAI's content parts
        text = _joined_parts(text)
    role = ROLES.get(label.lower()) if isinstance(label, str) else None
    if role is None:
        return f"unknown role {label!r}"
    if not isinstance(text, str):
        return "no text"
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return "half a surrogate pair, which UTF-8 cannot hold"
    return Turn(role=role, text=text)


def _joined_parts(parts: list[Any]) -> str | None:
    texts: list[str] = []
    for part in parts:
        text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
        if not isinstance(text, str):
            return None
        texts.append(text)
    return "".join(texts)


def _items(uri: str) -> Iterator[Any]:
    fs, path = open_location(uri)
    if path.endswith(".parquet"):
        yield from _parquet_items(fs, path)
    elif any(suffix in posixpath.basename(path) for suffix in _LINES):
        yield from _line_items(fs, path, uri)
    else:
        yield from _json_items(fs, path, uri)


def _json_items(fs: pafs.FileSystem, path: str, uri: str) -> Iterator[Any]:
    with fs.open_input_stream(path) as raw:
        stream = io.BufferedReader(raw, 1 << 16)
        if stream.peek(3).startswith(codecs.BOM_UTF8):
            stream.read(3)
        prefix = "item" if stream.peek(4096).lstrip().startswith(b"[") else ""
        read = 0
        try:
            for item in ijson.items(stream, prefix, multiple_values=True, use_float=True):
                read += 1
                yield item
        except ijson.JSONError as error:
            # yajl's message has the place on further lines, and is sometimes a bytes literal.
            message = str(error).removeprefix("b'").split("\n")[0].split("\\n")[0]
            yield Drop(
                id=f"{posixpath.basename(uri)}#{read}",
                source=uri,
                stage=Stage.READ,
                reason=Reason.TORN if "premature EOF" in message else Reason.MALFORMED,
                detail=f"after {read} whole records: {message}",
            )


def _line_items(fs: pafs.FileSystem, path: str, uri: str) -> Iterator[Any]:
    with fs.open_input_stream(path) as raw:
        stream = io.BufferedReader(raw, 1 << 20)
        number = 0
        while line := stream.readline(MAX_LINE_BYTES):
            number += 1
            ends = line.endswith(b"\n")
            if not ends and len(line) == MAX_LINE_BYTES:
                while (rest := stream.readline(1 << 20)) and not rest.endswith(b"\n"):
                    pass
                yield _line_drop(uri, number, Reason.TOO_LARGE, f"over {MAX_LINE_BYTES:,} bytes")
            elif line.strip():
                yield _decode_line(line, uri, number, torn=not ends)


def _decode_line(line: bytes, uri: str, number: int, *, torn: bool) -> Any:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError as error:
        reason = Reason.TORN if torn else Reason.MALFORMED
        return _line_drop(uri, number, reason, str(error))


def _line_drop(uri: str, number: int, reason: Reason, detail: str) -> Drop:
    return Drop(
        id=f"{posixpath.basename(uri)}:{number}",
        source=uri,
        stage=Stage.READ,
        reason=reason,
        detail=f"line {number}: {detail}",
    )


def _parquet_items(fs: pafs.FileSystem, path: str) -> Iterator[Any]:
    with fs.open_input_file(path) as file:
        for batch in pq.ParquetFile(file).iter_batches(batch_size=1000):
            yield from batch.to_pylist()
