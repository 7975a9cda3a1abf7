"""Which records are duplicates: tables in, tables out."""

import random

import numpy as np
import pyarrow as pa
import pytest

from ochat_ray.data.dedup import minhash as near
from ochat_ray.data.dedup.tables import (
    band_name,
    exact_duplicates,
    in_shard,
    minhash_table,
    near_duplicates,
    near_pairs,
)


def keys(*rows):
    names = ("digest", "id", "source", "part", "row")
    return pa.table({name: [row[i] for row in rows] for i, name in enumerate(names)})


def test_the_smallest_id_survives_then_the_smallest_source():
    table = exact_duplicates(
        keys(
            ("d1", "b", "f", "0", 0),
            ("d1", "a", "z", "1", 7),
            ("d1", "a", "y", "2", 3),
            ("d2", "c", "f", "0", 1),
            ("d3", "e", "f", "0", 2),
            ("d3", "d", "f", "1", 0),
        )
    )
    found = {(r["part"], r["row"]): r["survivor"] for r in table.to_pylist()}
    assert found == {("0", 0): "a", ("1", 7): "a", ("0", 2): "d"}
    assert set(table["reason"].to_pylist()) == {"duplicate"}


def test_no_duplicates_are_an_empty_table():
    assert len(exact_duplicates(keys(("d1", "a", "f", "0", 0)))) == 0


def test_shards_part_the_digests_and_keep_equal_ones_together():
    digests = [f"{i * 7919:032x}" for i in range(100)]
    shards = [in_shard(digests * 2, shard, 3) for shard in range(3)]
    assert [sum(column) for column in zip(*shards, strict=True)] == [1] * 200
    assert [s[:100] for s in shards] == [s[100:] for s in shards]


WORDS = [f"w{i}" for i in range(500)]


def texts():
    """20 of 300 words; then copies of the first 5 with one word changed, and one unlike all."""
    rng = random.Random(1)
    base = [[rng.choice(WORDS) for _ in range(300)] for _ in range(20)]
    near_copies = [[*words[:150], "changed", *words[151:]] for words in base[:5]]
    return [
        " ".join(words) for words in [*base, *near_copies, [rng.choice(WORDS) for _ in range(9)]]
    ]


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_near_duplicates_do_not_depend_on_order_parts_or_shards(seed, shards):
    records = [(f"id{number:02d}", text) for number, text in enumerate(texts())]
    random.Random(seed).shuffle(records)
    bands, rows_a_band = near.banding(0.8)
    tables = []
    for part, start in enumerate(range(0, len(records), 10)):
        chunk = records[start : start + 10]
        rows = pa.table(
            {
                "digest": [f"{abs(hash_of(text)):032x}" for _, text in chunk],
                "id": [id for id, _ in chunk],
                "source": ["f"] * len(chunk),
                "row": list(range(len(chunk))),
            }
        )
        texts_of = [text for _, text in chunk]
        tables.append(minhash_table(rows, texts_of, f"p{part}", bands, rows_a_band))
    table = pa.concat_tables(tables)
    order = table["order"].to_numpy()
    pairs = [
        near_pairs(table[band_name(band)].to_numpy(), order, shard, shards)
        for band in range(bands)
        for shard in range(shards)
    ]
    wanted = np.unique(np.concatenate(pairs))
    candidates = table.take(wanted).append_column("position", pa.array(wanted))
    found = near_duplicates(pairs, candidates, 0.8).to_pylist()
    ids = {(f"p{n // 10}", n % 10): id for n, (id, _) in enumerate(records)}
    # Copies 20..24 give way to originals 0..4, whose ids are smaller.
    assert {ids[r["part"], r["row"]]: r["survivor"] for r in found} == {
        f"id{20 + n}": f"id{n:02d}" for n in range(5)
    }
    assert {r["reason"] for r in found} == {"near_duplicate"}


def hash_of(text):
    return int.from_bytes(text.encode()[:12], "little")


def test_nothing_near_is_an_empty_table():
    rows = pa.table({"digest": ["0" * 32], "id": ["a"], "source": ["f"], "row": [0]})
    table = minhash_table(rows, ["one text"], "p", 2, 3).slice(0, 0)
    empty = table.append_column("position", pa.array([], pa.int64()))
    assert len(near_duplicates([], empty, 0.8)) == 0
