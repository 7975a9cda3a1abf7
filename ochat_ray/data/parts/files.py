"""Files of a part: their names, and how they are written and read."""

from __future__ import annotations

from collections.abc import Iterable
from heapq import nsmallest
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ochat_ray.data.tokenize import TokenRow
from ochat_ray.run_dir import RunDir
from ochat_ray.schema import CONVERSATIONS, DROPPED, TOKENS, Drop, Reason, drop_row

Summary = dict[str, Any]

CLEANED = CONVERSATIONS.append(pa.field("original", pa.list_(pa.string())))
"""Schema of cleaned conversations; `original` has the turns as read, for a few samples."""


def done_name(stage: str, name: str) -> str:
    """Return the file whose existence marks a part as complete in a stage."""
    return f"done/{stage}/{name}.json"


def names_done(run: RunDir, stage: str) -> set[str]:
    """Return the names of the parts that are complete in a stage."""
    names = run.files(f"done/{stage}", ".json")
    return {name.rsplit("/", 1)[-1].removesuffix(".json") for name in names}


def cleaned(part: str) -> str:
    """Return the file of a part's cleaned conversations."""
    return f"clean/{part}.parquet"


def write_parquet(
    run: RunDir, name: str, table: pa.Table, row_group_size: int | None = None
) -> None:
    """Write a Parquet file atomically."""
    with run.writing(name) as stream:
        pq.write_table(
            table,
            stream,
            compression="zstd",
            compression_level=1,
            row_group_size=row_group_size,
        )


def read_parquet(run: RunDir, name: str, columns: list[str] | None = None) -> pa.Table:
    """Read a Parquet file of the run."""
    with run.reading(name) as file:
        return pq.read_table(file, columns=columns)


def write_tokens(run: RunDir, name: str, rows: list[TokenRow]) -> None:
    """Write a token table."""
    table = pa.table(
        {
            "id": [row.id for row in rows],
            "input_ids": [row.input_ids for row in rows],
            "loss_weights": [row.loss_weights for row in rows],
            "length": [len(row.input_ids) for row in rows],
        },
        schema=TOKENS,
    )
    with run.writing(name) as stream, pa.ipc.new_file(stream, TOKENS) as writer:
        writer.write_table(table)


def write_drops(run: RunDir, name: str, drops: list[Drop]) -> Summary:
    """Write the table of drops, and return their counts and some examples."""
    if drops:
        table = pa.Table.from_pylist([drop_row(d) for d in drops], DROPPED)
        write_parquet(run, f"dropped/{name}.parquet", table)
    return {
        "dropped": [drop_row(drop) for drop in _examples(drops)],
        "drop_counts": count(str(drop.reason) for drop in drops),
    }


def count(values: Iterable[str]) -> dict[str, int]:
    """Return how often each value occurs, in the order of first occurrence."""
    counts: dict[str, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    return counts


def _examples(drops: list[Drop]) -> list[Drop]:
    """Return the three drops with the smallest ids per reason."""
    by_reason: dict[Reason, list[Drop]] = {}
    for drop in drops:
        by_reason.setdefault(drop.reason, []).append(drop)
    return [
        drop for found in by_reason.values() for drop in nsmallest(3, found, key=_id_and_source)
    ]


def _id_and_source(drop: Drop) -> tuple[str, str]:
    return drop.id, drop.source
