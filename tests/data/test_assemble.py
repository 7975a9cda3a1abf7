"""Files of a fixed number of rows out of parts of any size."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ochat_ray.data.assemble import assemble, plan_files
from ochat_ray.run_dir import RunDir
from ochat_ray.schema import DROPPED


@pytest.fixture
def run(tmp_path):
    run = RunDir.open(str(tmp_path))
    start = 0
    for part, size in {"a": 3, "b": 0, "c": 4, "d": 1}.items():
        table = pa.table({"id": [str(n) for n in range(start, start + size)]})
        start += size
        for split in ("train", "eval"):
            with (
                run.writing(f"tokens/{split}/{part}.arrow") as stream,
                pa.ipc.new_file(stream, table.schema) as writer,
            ):
                writer.write_table(table)
        with run.writing(f"conversations/{part}.parquet") as stream:
            pq.write_table(table, stream)
        with run.writing(f"dropped/clean/{part}.parquet") as stream:
            pq.write_table(DROPPED.empty_table(), stream)
    return run


SUMMARIES = [
    {"part": "a", "kept": 3, "train": 3, "eval": 0},
    {"part": "b", "kept": 0, "train": 0, "eval": 0},
    {"part": "c", "kept": 4, "train": 4, "eval": 0},
    {"part": "d", "kept": 1, "train": 1, "eval": 1},
]


def test_every_file_but_the_last_has_the_rows_and_all_are_in_order(run):
    files = {item["name"]: item["pieces"] for item in plan_files(run, SUMMARIES, 3)}
    assert list(files) == [
        "tokens/train/00000.arrow",
        "tokens/train/00001.arrow",
        "tokens/train/00002.arrow",
        "tokens/eval/00000.arrow",
        "conversations/00000.parquet",
        "conversations/00001.parquet",
        "conversations/00002.parquet",
    ]
    ids = []
    for number, rows in enumerate((3, 3, 2)):
        for folder, suffix in (("tokens/train", "arrow"), ("conversations", "parquet")):
            name = f"{folder}/{number:05d}.{suffix}"
            assemble(run, name, files[name])
        table = pa.ipc.open_file(run.path(f"tokens/train/{number:05d}.arrow")).read_all()
        assert len(table) == rows
        assert table == pq.read_table(run.path(f"conversations/{number:05d}.parquet"))
        ids += table["id"].to_pylist()
    assert ids == [str(n) for n in range(8)]


def test_no_rows_are_no_files(run):
    assert plan_files(run, [{"part": "b", "kept": 0, "train": 0, "eval": 0}], 3) == []
