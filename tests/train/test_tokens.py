"""Random access to a token table."""

import numpy as np
import pyarrow as pa
import pytest

from ochat_ray.errors import UserError
from ochat_ray.run_dir import RunDir
from ochat_ray.schema import TOKENS
from ochat_ray.train.tokens import TokenTable


def write(directory, files):
    """One Arrow file for each list of (id, length)."""
    run = RunDir.open(str(directory))
    for number, rows in enumerate(files):
        table = pa.Table.from_pylist(
            [
                {
                    "id": id,
                    "input_ids": list(range(length)),
                    "loss_weights": [0.0] + [1.0] * (length - 1),
                    "length": length,
                }
                for id, length in rows
            ],
            TOKENS,
        )
        name = f"tokens/train/{number}.arrow"
        with run.writing(name) as stream, pa.ipc.new_file(stream, TOKENS) as writer:
            writer.write_table(table)
    return str(directory)


ROWS = [("c", 3), ("a", 5), ("b", 2)]


def test_the_order_does_not_depend_on_files(tmp_path):
    one = TokenTable(write(tmp_path / "one", [ROWS]), "train")
    other = TokenTable(write(tmp_path / "other", [ROWS[2:], ROWS[:2]]), "train")
    for table in (one, other):
        assert [table.id(i) for i in range(3)] == ["a", "b", "c"]
        assert table.lengths.tolist() == [5, 2, 3]
    ids, weights = one.row(2)
    assert ids.tolist() == [0, 1, 2]
    assert weights.tolist() == [0.0, 1.0, 1.0]


def test_longer_conversations_are_excluded(tmp_path):
    data = write(tmp_path, [ROWS])
    table = TokenTable(data, "train", max_length=3)
    assert [table.id(i) for i in range(len(table.lengths))] == ["b", "c"]
    with pytest.raises(UserError, match="raise --max-length"):
        TokenTable(data, "train", max_length=1)


def test_a_sample_is_random_fits_and_is_reproducible(tmp_path):
    table = TokenTable(write(tmp_path, [[(f"{i:03d}", 1 + i % 7) for i in range(200)]]), "train")
    sample = table.sample(100, seed=0)
    assert 90 < table.lengths[sample].sum() <= 100
    assert np.array_equal(sample, table.sample(100, seed=0))
    assert not np.array_equal(sample, table.sample(100, seed=1))
    assert table.sample(None, seed=0).tolist() == list(range(200))
    assert len(table.sample(0, seed=0)) == 1


def test_a_pack_is_its_rows(tmp_path):
    table = TokenTable(write(tmp_path, [ROWS]), "train")
    batch = table.batch([1, 2])
    assert batch.input_ids.tolist() == [[0, 1, 0, 1, 2]]
    assert batch.position_ids.tolist() == [[0, 1, 0, 1, 2]]


def table(directory, rows):
    """A split of rows (ids, weights)."""
    run = RunDir.open(str(directory))
    made = pa.Table.from_pylist(
        [
            {"id": str(n), "input_ids": ids, "loss_weights": weights, "length": len(ids)}
            for n, (ids, weights) in enumerate(rows)
        ],
        TOKENS,
    )
    with run.writing("tokens/train/0.arrow") as stream, pa.ipc.new_file(stream, TOKENS) as writer:
        writer.write_table(made)
    return TokenTable(str(directory), "train")


def test_a_valid_table_is_accepted(tmp_path):
    table(tmp_path, [([0, 9], [0.0, 0.5]), ([3], [0.0])]).check(10)


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ([([0, 1], [0.0, 1.0]), ([10, 2], [0.0, 1.0])], "has the token id 10, .* has 10 tokens"),
        ([([0, -1], [0.0, 1.0])], "has the token id -1"),
        ([([0, 1], [0.0, -1.0])], "negative or not finite"),
        ([([0, 1], [0.0, float("nan")])], "negative or not finite"),
        ([([0, 1], [0.0, float("inf")])], "negative or not finite"),
        ([([0, 1], [0.0, 1.0]), ([], [])], "has a conversation without tokens"),
        ([([0, 1], [0.0, 0.0])], "has no token with a loss weight"),
        (
            [([0, 1], [1.0, 0.0])],
            "has no token with a loss weight",
        ),  # the first token is never a label
    ],
)
def test_an_invalid_table_is_one_line(tmp_path, rows, line):
    with pytest.raises(UserError, match=line):
        table(tmp_path, rows).check(10)


def test_a_damaged_table_is_one_line(tmp_path):
    write(tmp_path, [ROWS])
    file = tmp_path / "tokens/train/0.arrow"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"tokens/train/0\.arrow is damaged .*prepare the data"):
        TokenTable(str(tmp_path), "train")
