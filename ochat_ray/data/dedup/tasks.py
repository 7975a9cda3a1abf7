"""Tasks of the deduplication pass, with the files that each reads and writes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ochat_ray.data.dedup import tables as dup
from ochat_ray.data.dedup.minhash import conversation_text
from ochat_ray.data.parts.files import Summary, cleaned, done_name, read_parquet, write_parquet
from ochat_ray.run_dir import RunDir
from ochat_ray.schema import Turn

GROUP_ROWS = 20_000
"""Rows per row group of a file of duplicates, sorted by part, of which readers need one part."""

READERS = 16
"""Files read concurrently, since each costs a round trip to a remote store."""

SHARD_ROWS = 5_000_000
"""Maximum rows whose keys one task holds, about 100 bytes each."""


def shards_of(rows: int) -> int:
    """Return the number of tasks that compare this many rows."""
    return max(1, -(-rows // SHARD_ROWS))


def find_exact(run: RunDir, parts: Sequence[str], shard: int, shards: int) -> Summary:
    """Write the exact duplicates among one shard's digests."""

    def keys_of(part: str) -> pa.Table:
        keys = read_parquet(run, cleaned(part), ["id", "source", "digest"])
        keys = keys.append_column("part", pa.array([part] * len(keys), pa.string()))
        keys = keys.append_column("row", pa.array(range(len(keys)), pa.int64()))
        if shards > 1:
            keys = keys.filter(pa.array(dup.in_shard(keys["digest"].to_pylist(), shard, shards)))
        return keys

    if not parts:
        return {"found": 0}
    with ThreadPoolExecutor(READERS) as pool:
        table = dup.exact_duplicates(pa.concat_tables(pool.map(keys_of, parts)))
    write_parquet(run, _exact(shard), table, GROUP_ROWS)
    return {"found": len(table)}


def exact_is_done(run: RunDir, shard: int) -> bool:
    """Return whether a shard's exact duplicates were found and their file, if any, still exists."""
    done = run.read_json(done_name("exact", f"{shard:06d}"))
    return done is not None and (not done["found"] or run.exists(_exact(shard)))


def _exact(shard: int) -> str:
    return f"duplicates/exact-{shard:06d}.parquet"


def write_minhash(run: RunDir, part: str, bands: int, rows_a_band: int) -> Summary:
    """Write the signatures of a part's conversations that have no exact duplicate."""
    rows, texts = minhash_input(run, part)
    table = dup.minhash_table(rows, texts, part, bands, rows_a_band)
    write_parquet(run, _minhash(part), table)
    return {"rows": len(table)}


def find_pairs(run: RunDir, parts: Sequence[str], band: str, shard: int, shards: int) -> Summary:
    """Write the candidate pairs of one band and shard, by position among all parts' rows."""
    with ThreadPoolExecutor(READERS) as pool:
        tables = pool.map(lambda part: read_parquet(run, _minhash(part), [band, "order"]), parts)
        table = pa.concat_tables(tables)
    hashes, order = table[band].to_numpy(), table["order"].to_numpy()
    pairs = dup.near_pairs(hashes, order, shard, shards)
    columns = {"left": pa.array(pairs[:, 0]), "right": pa.array(pairs[:, 1])}
    write_parquet(run, f"pairs/{band}-{shard:06d}.parquet", pa.table(columns))
    return {"pairs": len(pairs)}


def find_near(run: RunDir, parts: Sequence[str], threshold: float) -> int:
    """Write the near duplicates among all candidate pairs; return their number."""
    pairs = [
        np.stack([table["left"].to_numpy(), table["right"].to_numpy()], axis=1)
        for name in run.files("pairs", ".parquet")
        for table in [read_parquet(run, name)]
    ]
    wanted = np.unique(np.concatenate([np.empty((0, 2), np.int64), *pairs]))
    candidates = list(_candidates(run, parts, wanted))
    if not candidates:
        return 0
    table = dup.near_duplicates(pairs, pa.concat_tables(candidates), threshold)
    write_parquet(run, "duplicates/near.parquet", table, GROUP_ROWS)
    return len(table)


def _candidates(run: RunDir, parts: Sequence[str], wanted: np.ndarray) -> Iterator[pa.Table]:
    """Yield the rows at the wanted positions, for parts that have any."""
    start = 0
    for part in parts:
        table = read_parquet(run, _minhash(part), [*dup.KEY, "signature"])
        inside = wanted[(wanted >= start) & (wanted < start + len(table))]
        rows = table.take(pa.array(inside - start))
        yield rows.append_column("position", pa.array(inside))
        start += len(table)


def _minhash(part: str) -> str:
    return f"minhash/{part}.parquet"


def minhash_input(run: RunDir, part: str) -> tuple[pa.Table, list[str]]:
    """Return digests, ids, row numbers and texts of a part's exactly unique conversations."""
    table = read_parquet(run, cleaned(part), ["id", "source", "digest", "turns"])
    table = table.append_column("row", pa.array(range(len(table)), pa.int64()))
    repeated = duplicates_of(run, part)
    table = table.filter(pa.array([row not in repeated for row in range(len(table))], pa.bool_()))
    texts = [
        conversation_text(Turn(role=t["role"], text=t["text"]) for t in turns)
        for turns in table["turns"].to_pylist()
    ]
    return table.drop_columns(["turns"]), texts


def duplicates_of(run: RunDir, part: str) -> dict[int, tuple[str, str]]:
    """Return the rows of a part that duplicate another: (reason, survivor)."""
    found: dict[int, tuple[str, str]] = {}
    for name in run.files("duplicates", ".parquet"):
        with run.reading(name) as file:
            table = pq.read_table(file, filters=pc.field("part") == part)
        for row in table.to_pylist():
            found.setdefault(row["row"], (row["reason"], row["survivor"]))
    return found
