"""Conversations from files: share pages, ShareGPT JSON or JSON lines, OpenAI messages, Parquet.

Files and archives are streamed; one conversation at a time is a Python object. What cannot be read
comes out as a `Drop`, never as an exception.
"""

from __future__ import annotations

import codecs
import io
import posixpath
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import ijson
import orjson
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from ochat_ray.data import archives
from ochat_ray.data.inputs import ARCHIVES, is_page
from ochat_ray.data.records import DEFAULTS, ReadOptions, records_of
from ochat_ray.data.share_page import MAX_PAGE_BYTES, Unusable, page_record
from ochat_ray.run_dir import open_location
from ochat_ray.schema import Drop, Reason, Record, Stage

MAX_LINE_BYTES = 64 * 2**20
"""Of a record in JSON lines."""

_LINES = (".jsonl", ".ndjson")

READ_AHEAD = 16
"""Files that are fetched at a time from a remote store, where each costs a round trip."""


def read_files(uris: Sequence[str], options: ReadOptions = DEFAULTS) -> Iterator[Record]:
    """Every conversation of the files, in order, and a `Drop` for everything else in them."""
    if len(uris) > 1 and "://" in uris[0]:
        with ThreadPoolExecutor(READ_AHEAD) as pool:
            for uri, page in zip(uris, pool.map(_page_bytes, uris), strict=True):
                yield from _parse_page(page, uri, options)
        return
    for uri in uris:
        yield from read_file(uri, options)


def read_file(uri: str, options: ReadOptions = DEFAULTS) -> Iterator[Record]:
    """Every conversation of one file, and a `Drop` for everything in it that is none."""
    parse_page = partial(_parse_page, options=options)
    name = uri.lower()
    if is_page(name):
        yield from parse_page(_page_bytes(uri), uri)
    elif name.endswith(".zip"):
        yield from archives.zip_pages(uri, parse_page)
    elif name.endswith(ARCHIVES):
        yield from archives.tar_pages(uri, parse_page)
    else:
        for index, item in enumerate(_items(uri)):
            if isinstance(item, Drop):
                yield item
            else:
                yield from records_of(item, source=uri, index=index, options=options)


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


def _parse_page(page: bytes | Unusable, source: str, options: ReadOptions) -> Iterator[Record]:
    record = page if isinstance(page, Unusable) else page_record(page)
    stem = posixpath.basename(source).split(".")[0]
    if isinstance(record, Unusable):
        yield Drop(
            id=stem, source=source, stage=Stage.READ, reason=record.reason, detail=record.detail
        )
        return
    record["id"] = record["id"] or stem
    yield from records_of(record, source=source, index=0, options=options, page=True)


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
