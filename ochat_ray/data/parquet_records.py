"""Read records from Parquet in batches; unreadable data costs only its own rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from ochat_ray.data.byte_streams import StoreError
from ochat_ray.data.json_values import Broken
from ochat_ray.errors import first_line
from ochat_ray.schema import Reason

BATCH_BYTES = 32 * 2**20
BATCH_ROWS = 1000


def parquet_records(stream: IO[bytes]) -> Iterator[Any]:
    """Yield each row as a dict, and a `Broken` for each unreadable row or row group.

    Raises Arrow's errors if the file cannot be opened as Parquet.
    """
    file = pq.ParquetFile(pa.PythonFile(stream, mode="r"))
    read = 0
    for number in range(file.num_row_groups):
        group = file.metadata.row_group(number)
        rows = group.num_rows
        row_bytes = max(1, group.total_byte_size // max(1, rows))
        batch_rows = max(1, min(BATCH_ROWS, BATCH_BYTES // row_bytes))
        left = rows
        try:
            for batch in file.iter_batches(batch_size=batch_rows, row_groups=[number]):
                for row in _rows(batch):
                    if isinstance(row, str):
                        yield Broken(f"#{read}", Reason.UNREADABLE, row)
                    else:
                        yield row
                    read += 1
                    left -= 1
        except StoreError:
            raise
        # Arrow's own errors, and those that Python raises for its values.
        except Exception as error:  # noqa: BLE001
            detail = (
                f"row group {number}: {left:,} of {rows:,} rows were not read: "
                f"{first_line(error)} ({type(error).__name__})"
            )
            yield Broken(f"#{read}", Reason.UNREADABLE, detail)


def _rows(batch: pa.RecordBatch) -> Iterator[Any]:
    """Yield the rows as dicts; the reason for a row with a value that Python cannot represent."""
    try:
        rows = batch.to_pylist()
    # A time beyond Python's years, bytes that are not UTF-8, two fields of one name...
    except (ValueError, OverflowError, TypeError, pa.ArrowException):
        rows = [_row(batch.slice(number, 1)) for number in range(batch.num_rows)]
    yield from rows


def _row(batch: pa.RecordBatch) -> dict[str, Any] | str:
    row: dict[str, Any] = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            row[name] = column[0].as_py()
        except (ValueError, OverflowError, TypeError, pa.ArrowException) as error:
            return f"column {name!r}: {first_line(error)} ({type(error).__name__})"
    return row
