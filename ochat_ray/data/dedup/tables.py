"""Find duplicate conversations: pure functions over the parts' tables.

Exact duplicates are found by digest, near duplicates by MinHash (`minhash.py`). Only
digests, ids and signatures are loaded, never texts, and each step can process one shard at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from ochat_ray.data.dedup import minhash as near
from ochat_ray.schema import Reason

DUPLICATES = pa.schema(
    [
        ("part", pa.string()),
        ("row", pa.int64()),
        ("reason", pa.string()),
        ("survivor", pa.string()),
    ]
)

KEY = ["id", "source", "part", "row"]
"""Sort key; the record with the smallest key survives.

Which of two records with equal id and source survives does not affect the result; part and row only
make the key unique.
"""


def in_shard(digests: Sequence[str], shard: int, shards: int) -> list[bool]:
    """Return a mask of the digests in a shard; equal digests are in the same shard."""
    return [int(digest[-6:], 16) % shards == shard for digest in digests]


def exact_duplicates(keys: pa.Table) -> pa.Table:
    """Return the DUPLICATES among rows with the columns digest, id, source, part, row."""
    ordered = keys.sort_by([(name, "ascending") for name in ("digest", *KEY)])
    digests = ordered["digest"].to_numpy(zero_copy_only=False)
    repeats = np.zeros(len(digests), bool)
    repeats[1:] = digests[1:] == digests[:-1]
    # The first of each run of equal digests survives.
    firsts = np.maximum.accumulate(np.where(repeats, 0, np.arange(len(digests))))
    which = np.flatnonzero(repeats)
    survivors = ordered["id"].take(pa.array(firsts[which]))
    return _table(ordered.take(pa.array(which)), survivors, Reason.DUPLICATE)


def minhash_table(
    rows: pa.Table, texts: Sequence[str], part: str, bands: int, rows_a_band: int
) -> pa.Table:
    """Return a part's unique rows with their order, signature and one column per band."""
    signatures = near.signatures(texts)
    hashes = near.band_hashes(signatures, bands, rows_a_band)
    binary = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(signatures.shape[1] * 4),
        len(signatures),
        [None, pa.py_buffer(np.ascontiguousarray(signatures, "<u4").tobytes())],
    )
    columns: dict[str, Any] = {
        "id": rows["id"],
        "source": rows["source"],
        "part": pa.array([part] * len(rows), pa.string()),
        "row": rows["row"],
        "order": pa.array(near.digest_order(rows["digest"].to_pylist())),
        "signature": binary,
    }
    columns |= {band_name(b): pa.array(np.ascontiguousarray(hashes[:, b])) for b in range(bands)}
    return pa.table(columns)


def band_name(band: int) -> str:
    """Return the column name of a band's hashes."""
    return f"band_{band:02d}"


def near_pairs(hashes: np.ndarray, order: np.ndarray, shard: int, shards: int) -> np.ndarray:
    """Return candidate pairs of one band and shard: int64 [M, 2] positions in the two arrays."""
    inside = np.flatnonzero(near.in_shard(hashes, shard, shards))
    pairs = near.candidate_pairs(hashes[inside], order[inside])
    return inside[pairs].reshape(-1, 2)


def near_duplicates(
    pairs: Iterable[np.ndarray], candidates: pa.Table, threshold: float
) -> pa.Table:
    """Return the DUPLICATES among similar candidates, clustered over all candidate pairs.

    `candidates` has the rows that occur in `pairs`, with their position in the column "position".
    """
    if len(candidates) == 0:
        return DUPLICATES.empty_table()
    positions = candidates["position"].to_numpy()
    order = np.argsort(positions)
    signatures = np.frombuffer(b"".join(candidates["signature"].to_pylist()), "<u4").reshape(
        len(candidates), -1
    )
    # Map positions among all rows to positions among the candidates.
    local = order[np.searchsorted(positions, near.distinct(pairs), sorter=order)]
    similar = near.similar(local, signatures, threshold)
    keys = list(zip(*(candidates[name].to_pylist() for name in KEY), strict=True))
    dropped = near.clusters(similar, keys)
    which = sorted(dropped)
    survivors = pa.array([keys[dropped[position]][0] for position in which], pa.string())
    return _table(candidates.take(pa.array(which, pa.int64())), survivors, Reason.NEAR_DUPLICATE)


def _table(rows: pa.Table, survivors: Any, reason: Reason) -> pa.Table:
    table = pa.table(
        {
            "part": rows["part"].cast(pa.string()),
            "row": rows["row"],
            "reason": pa.array([str(reason)] * len(rows), pa.string()),
            "survivor": survivors,
        },
        schema=DUPLICATES,
    )
    # By part, so that a reader of one part's rows skips row groups of other parts.
    return table.sort_by([("part", "ascending"), ("row", "ascending")])
