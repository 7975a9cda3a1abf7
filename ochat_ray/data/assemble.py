"""Concatenate the parts' tables to files with a fixed number of rows, in the order of the parts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ochat_ray.data.parts.files import Summary
from ochat_ray.run_dir import RunDir

FILE_ROWS = 10_000

Piece = tuple[str, int, int]
"""Part file, first row, number of rows."""


def plan_files(run: RunDir, summaries: Sequence[Summary], rows: int) -> list[dict[str, Any]]:
    """Return {name, pieces} for every file of the run's tables."""
    items: list[dict[str, Any]] = []
    for split in ("train", "eval"):
        sizes = [(f"tokens/{split}/{s['part']}.arrow", s[split]) for s in summaries]
        items += _files(f"tokens/{split}", "arrow", sizes, rows)
    kept = [(f"conversations/{s['part']}.parquet", s["kept"]) for s in summaries]
    items += _files("conversations", "parquet", kept, rows)
    dropped = [
        (name, _parquet_rows(run, name))
        for stage in ("clean", "tokenize")
        for name in run.files(f"dropped/{stage}", ".parquet")
    ]
    items += _files("dropped", "parquet", dropped, 10 * rows)
    return items


def assemble(run: RunDir, name: str, pieces: Sequence[Piece]) -> None:
    """Write one file from its pieces, with one piece in memory at a time."""
    tables = (_read(run, source).slice(start, count) for source, start, count in pieces)
    first = next(tables)
    with run.writing(name) as stream:
        if name.endswith(".arrow"):
            # Not compressed: training memory-maps the file and reads rows at random.
            with pa.ipc.new_file(stream, first.schema) as writer:
                for table in _chain(first, tables):
                    writer.write_table(table)
        else:
            with pq.ParquetWriter(stream, first.schema, compression="zstd") as writer:
                for table in _chain(first, tables):
                    writer.write_table(table)


def _chain(first: pa.Table, rest: Iterable[pa.Table]) -> Iterator[pa.Table]:
    yield first
    yield from rest


def _files(
    folder: str, suffix: str, sizes: Sequence[tuple[str, int]], rows: int
) -> Iterator[dict[str, Any]]:
    """Split the sequence of part files, each with its number of rows, into files of `rows` rows."""
    pieces: list[Piece] = []
    room, number = rows, 0
    for source, size in sizes:
        start = 0
        while start < size:
            count = min(room, size - start)
            pieces.append((source, start, count))
            start, room = start + count, room - count
            if room == 0:
                yield {"name": f"{folder}/{number:05d}.{suffix}", "pieces": pieces}
                pieces, room, number = [], rows, number + 1
    if pieces:
        yield {"name": f"{folder}/{number:05d}.{suffix}", "pieces": pieces}


def _parquet_rows(run: RunDir, name: str) -> int:
    with run.reading(name) as file:
        return int(pq.ParquetFile(file).metadata.num_rows)


def _read(run: RunDir, name: str) -> pa.Table:
    with run.reading(name) as file:
        return pa.ipc.open_file(file).read_all() if name.endswith(".arrow") else pq.read_table(file)
