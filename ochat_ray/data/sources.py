"""Conversations from files: ShareGPT JSON or JSON lines, OpenAI messages, Parquet of either.

Files are streamed; one conversation at a time is a Python object. What cannot be read comes out
as a `Drop`, never as an exception.
"""

from __future__ import annotations

import codecs
import io
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ijson
import orjson
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from ochat_ray.errors import UserError
from ochat_ray.run_dir import open_location
from ochat_ray.schema import Conversation, Drop, Reason, Role, Stage, Turn

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

_SUFFIXES = (".json", ".jsonl", ".ndjson", ".parquet")
_READABLE = tuple(s + z for s in _SUFFIXES for z in ("", ".gz", ".bz2", ".zst"))
_LINES = (".jsonl", ".ndjson")


def find_files(inputs: Sequence[str]) -> list[str]:
    """The files to read, sorted and once each, of paths or URIs of files and folders.

    Raises:
        UserError: an input does not exist, is of a kind that is not read, or holds no such file.
    """
    found: set[str] = set()
    for uri in inputs:
        fs, path = open_location(uri)
        info = fs.get_file_info(path)
        if info.type == pafs.FileType.NotFound:
            raise UserError(f"input {uri} does not exist; give --input a file or a folder")
        if info.type == pafs.FileType.File:
            if not path.endswith(_READABLE):
                raise UserError(
                    f"input {uri} is of a kind that is not read; expected {', '.join(_SUFFIXES)}"
                )
            found.add(uri if "://" in uri else path)
            continue
        prefix = uri.split("://")[0] + "://" if "://" in uri else ""
        below = fs.get_file_info(pafs.FileSelector(path, recursive=True))
        files = {
            prefix + entry.path
            for entry in below
            if entry.type == pafs.FileType.File and entry.path.endswith(_READABLE)
        }
        if not files:
            raise UserError(f"input {uri} holds no file to read ({', '.join(_SUFFIXES)})")
        found |= files
    return sorted(found)


def read_file(uri: str) -> Iterator[Conversation | Drop]:
    """Every conversation of one file, and a `Drop` for everything in it that is none."""
    for index, item in enumerate(_items(uri)):
        if isinstance(item, Drop):
            yield item
        else:
            yield parse_item(item, source=uri, index=index)


def parse_item(item: Any, *, source: str, index: int) -> Conversation | Drop:
    """One conversation from a decoded record; `index` counts the file's records from 0.

    Records are {id?, model?, title?, and one of conversations, items, messages or turns}; a turn
    is {from, value}, {role, content} or {role, text}.
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
        name = str(item["id"])

    turns = []
    for position, raw in enumerate(raw_turns):
        turn = _parse_turn(raw)
        if isinstance(turn, str):
            return malformed(f"turn {position}: {turn}")
        turns.append(turn)
    model, title = item.get("model"), item.get("title")
    return Conversation(
        id=name,
        source=source,
        turns=tuple(turns),
        model=str(model) if model else None,
        title=str(title) if title else None,
    )


def _parse_turn(raw: Any) -> Turn | str:
    """A turn, or what is wrong with it."""
    if not isinstance(raw, dict):
        return "not an object"
    label = next((raw[k] for k in ("from", "role") if raw.get(k) is not None), None)
    text = next((raw[k] for k in ("value", "content", "text") if raw.get(k) is not None), None)
    if isinstance(text, list):  # OpenAI's content parts
        text = _joined_parts(text)
    role = ROLES.get(label.lower()) if isinstance(label, str) else None
    if role is None:
        return f"unknown role {label!r}"
    if not isinstance(text, str):
        return "no text"
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
    with fs.open_input_stream(path) as stream:
        number = 0
        rest = b""
        while chunk := stream.read(1 << 20):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                number += 1
                if line.strip():
                    yield _decode_line(line, uri, number, torn=False)
        if rest.strip():
            yield _decode_line(rest, uri, number + 1, torn=True)


def _decode_line(line: bytes, uri: str, number: int, *, torn: bool) -> Any:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return Drop(
            id=f"{posixpath.basename(uri)}:{number}",
            source=uri,
            stage=Stage.READ,
            reason=Reason.TORN if torn else Reason.MALFORMED,
            detail=f"line {number}: {error}",
        )


def _parquet_items(fs: pafs.FileSystem, path: str) -> Iterator[Any]:
    with fs.open_input_file(path) as file:
        for batch in pq.ParquetFile(file).iter_batches(batch_size=1000):
            yield from batch.to_pylist()
