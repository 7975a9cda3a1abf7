"""Verify token tables against their manifest.

A manifest's digest is the sum, modulo 2**256, of its rows' SHA-256. It is computed again from the
files, which are streamed, so a reader detects rows of another run, missing or duplicated rows and
damaged files before using any.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from ochat_ray.errors import UserError, first_line, is_store_failure
from ochat_ray.run_dir import MANIFEST, RunDir
from ochat_ray.schema import TOKENS

DIGEST_MODULUS = 2**256

FileSummary = dict[str, Any]
"""`rows` of a file; for a token table also `tokens`, `supervised_tokens` and `digest`."""

_COUNTS = ("rows", "tokens", "supervised_tokens")


def row_digest(split: str, id: str, input_ids: bytes, loss_weights: bytes) -> int:
    """Return the SHA-256 of a row's length-framed split, id, ids and weights, as a number.

    Ids are int32 and weights float32, both little-endian.
    """
    fields = (split.encode(), id.encode(), input_ids, loss_weights)
    framed = b"".join(part for f in fields for part in (len(f).to_bytes(8, "little"), f))
    return int.from_bytes(hashlib.sha256(framed).digest(), "little")


TOKEN_TABLES = ("tokens/train", "tokens/eval")
ALL_TABLES = (*TOKEN_TABLES, "conversations", "dropped")


def verify_tables(
    uri: str, manifest: Mapping[str, Any], tables: Sequence[str] = TOKEN_TABLES
) -> None:
    """Compare tables of a run directory with its manifest: files, rows, digest.

    `tables` includes the token tables; for others, only rows are counted.

    Raises:
        UserError: They disagree; the line names the file, if the manifest lists files.
    """
    check_shape(uri, manifest)
    run = RunDir.open(uri)
    found = summarize_files(run, list_tables(run, tables))
    recorded = manifest.get("files")
    if recorded is not None:
        expected = {n: file for n, file in recorded.items() if n.rpartition("/")[0] in tables}
        check_files(uri, found, expected)
    check_totals(uri, found, manifest, tables)


def check_shape(uri: str, manifest: Mapping[str, Any]) -> None:
    """Raise a UserError if a manifest lacks values to compare, for example after being edited."""
    tokens, counts = manifest.get("tokens"), manifest.get("counts")
    is_complete = (
        isinstance(manifest.get("digest"), str)
        and isinstance(tokens, dict)
        and all(_is_counts(tokens.get(split)) for split in ("train", "eval"))
        and isinstance(files := manifest.get("files") or {}, dict)
        and all(isinstance(file, dict) for file in files.values())
        and isinstance(counts, dict)
        and isinstance(counts.get("kept"), int)
        and _is_counts(counts.get("dropped"))
    )
    if not is_complete:
        raise UserError(
            f"{uri} has a damaged {MANIFEST}: digest, tokens, files or counts are not what prepare "
            "writes; prepare the data again"
        )


def _is_counts(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(count, int) for count in value.values())


def list_tables(run: RunDir, tables: Sequence[str]) -> list[str]:
    """Return the names of the existing files of these tables."""
    return [
        name
        for folder in tables
        for name in run.files(folder, ".arrow" if folder in TOKEN_TABLES else ".parquet")
    ]


def check_files(
    uri: str, found: Mapping[str, FileSummary], expected: Mapping[str, FileSummary]
) -> None:
    """Raise a UserError that names the first file that is missing, unexpected or different."""
    for name in sorted({*found, *expected}):
        if name not in found:
            raise _disagreement(uri, f"{name} is missing")
        if name not in expected:
            raise _disagreement(uri, f"{name} is not one of its files")
        for key, value in expected[name].items():
            if found[name].get(key) != value:
                raise _disagreement(uri, f"{name} has {_values(key, found[name].get(key), value)}")


def check_totals(
    uri: str,
    files: Mapping[str, FileSummary],
    manifest: Mapping[str, Any],
    tables: Sequence[str] = ALL_TABLES,
) -> None:
    """Raise a UserError if the sums over the files of these tables differ from the manifest's."""
    for split, counts in manifest["tokens"].items():
        of_split = [file for name, file in files.items() if name.startswith(f"tokens/{split}/")]
        for key in _COUNTS:
            total = sum(file[key] for file in of_split)
            if total != counts.get(key, total):
                raise _disagreement(
                    uri, f"the {split} split has {_values(key, total, counts[key])}"
                )
    counts = manifest["counts"]
    expected = {"conversations": counts["kept"], "dropped": sum(counts["dropped"].values())}
    for table in {*tables} & {*expected}:
        rows = sum(file["rows"] for name, file in files.items() if name.startswith(f"{table}/"))
        if rows != expected[table]:
            raise _disagreement(uri, f"{table}/ has {_values('rows', rows, expected[table])}")
    digest = sum(int(file["digest"], 16) for file in files.values() if "digest" in file)
    if f"{digest % DIGEST_MODULUS:064x}" != manifest["digest"]:
        raise _disagreement(uri, "the token tables do not match its digest")


def summarize_files(run: RunDir, names: Iterable[str]) -> dict[str, FileSummary]:
    """Read files of tables concurrently, and summarize each.

    Raises:
        UserError: A file is damaged, or not a token table although it is in such a folder.
    """
    with ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as pool:
        names = list(names)
        summaries = pool.map(lambda name: summarize_file(run, name), names)
        return dict(zip(names, summaries, strict=True))


def summarize_file(run: RunDir, name: str) -> FileSummary:
    """Summarize one file of a token table (`tokens/SPLIT/*.arrow`) or a Parquet file."""
    try:
        if not name.endswith(".arrow"):
            with run.fs.open_input_file(run.path(name)) as file:
                return {"rows": int(pq.ParquetFile(file).metadata.num_rows)}
        split = name.split("/")[-2]
        rows = tokens = supervised = digest = 0
        for batch in _batches(run, name):
            ids, weights = _lists(batch["input_ids"]), _lists(batch["loss_weights"])
            sizes = np.diff(ids[0])
            if not (
                np.array_equal(sizes, np.diff(weights[0]))
                and np.array_equal(sizes, batch["length"].to_numpy())
            ):
                raise pa.ArrowInvalid("ids, weights and length of a row differ in length")
            rows += len(batch)
            tokens += len(ids[1])
            supervised += int(np.count_nonzero(weights[1]))
            digest += _digest(split, batch["id"].to_pylist(), ids, weights)
    except Exception as error:
        # Arrow's readers raise many types for damaged files, including OSError without errno.
        is_there = not isinstance(error, FileNotFoundError)
        if isinstance(error, OSError) and is_there and (error.errno or is_store_failure(error)):
            raise
        raise _disagreement(run.root, f"{name} cannot be read ({first_line(error)})") from error
    return {
        "rows": rows,
        "tokens": tokens,
        "supervised_tokens": supervised,
        "digest": f"{digest % DIGEST_MODULUS:064x}",
    }


def _batches(run: RunDir, name: str) -> Iterator[pa.RecordBatch]:
    local = isinstance(run.fs, pafs.LocalFileSystem)
    source = pa.memory_map(run.path(name)) if local else run.fs.open_input_file(run.path(name))
    with closing(source), pa.ipc.open_file(source) as reader:
        if not reader.schema.equals(TOKENS):
            raise pa.ArrowInvalid("it has other columns than a token table")
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            batch.validate(full=True)  # damaged offsets point outside of the file
            if any(column.null_count for column in batch.columns):
                raise pa.ArrowInvalid("a value is missing")
            yield batch


def _lists(column: pa.ListArray) -> tuple[np.ndarray, np.ndarray]:
    """Return offsets (rows + 1,) from 0 and values of a column of lists."""
    offsets = column.offsets.to_numpy()
    values = column.flatten()
    return offsets - offsets[0] if len(offsets) else np.zeros(1, np.int32), values.to_numpy()


def _digest(
    split: str,
    names: list[str],
    ids: tuple[np.ndarray, np.ndarray],
    weights: tuple[np.ndarray, np.ndarray],
) -> int:
    id_bytes = np.asarray(ids[1], "<i4").tobytes()
    weight_bytes = np.asarray(weights[1], "<f4").tobytes()
    ends: list[int] = (4 * ids[0].astype(np.int64)).tolist()
    return sum(
        row_digest(split, name, id_bytes[start:end], weight_bytes[start:end])
        for name, start, end in zip(names, ends[:-1], ends[1:], strict=True)
    )


def _values(key: str, found: Any, expected: Any) -> str:
    if key == "digest":
        return "other content than it was written with"
    return f"{_number(found)} {key.replace('_', ' ')} instead of {_number(expected)}"


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else repr(value)  # of an edited manifest


def _disagreement(uri: str, what: str) -> UserError:
    return UserError(f"{uri} does not agree with its {MANIFEST}: {what}; prepare the data again")
