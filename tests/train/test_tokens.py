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


def test_longer_conversations_are_left_out(tmp_path):
    data = write(tmp_path, [ROWS])
    table = TokenTable(data, "train", max_length=3)
    assert [table.id(i) for i in range(len(table.lengths))] == ["b", "c"]
    with pytest.raises(UserError, match="raise --max-length"):
        TokenTable(data, "train", max_length=1)


def test_a_sample_is_random_fits_and_is_the_same_again(tmp_path):
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
