"""Tables that are not those of their manifest are refused by name."""

import hashlib
import struct
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ochat_ray.data.tokenize import TokenRow, table_digest
from ochat_ray.data.verify import (
    ALL_TABLES,
    check_files,
    check_totals,
    summarize_file,
    summarize_files,
    verify_tables,
)
from ochat_ray.errors import UserError
from ochat_ray.run_dir import RunDir
from ochat_ray.schema import TOKENS

ROWS = {
    "tokens/train/00000.arrow": [("a", [1, 2, 3], [0.0, 1.0, 0.25]), ("é", [7], [1.0])],
    "tokens/train/00001.arrow": [("c", [1, 2], [0.0, 1.0])],
    "tokens/eval/00000.arrow": [("d", [4, 5], [0.0, 0.0])],
}


def write(run, name, rows, batch_rows=1):
    columns = {
        "id": [id for id, _, _ in rows],
        "input_ids": [ids for _, ids, _ in rows],
        "loss_weights": [weights for *_, weights in rows],
        "length": [len(ids) for _, ids, _ in rows],
    }
    with run.writing(name) as stream, pa.ipc.new_file(stream, TOKENS) as writer:
        writer.write_table(pa.table(columns, TOKENS), max_chunksize=batch_rows)


def by_hand(split, id, ids, weights):
    """The documented hash: SHA-256 over four fields, each after its length in 8 bytes."""
    fields = [split.encode(), id.encode()]
    fields += [struct.pack(f"<{len(ids)}i", *ids), struct.pack(f"<{len(weights)}f", *weights)]
    framed = b"".join(struct.pack("<Q", len(field)) + field for field in fields)
    return int.from_bytes(hashlib.sha256(framed).digest(), "little")


@pytest.fixture
def data(tmp_path):
    run = RunDir.open(str(tmp_path))
    for name, rows in ROWS.items():
        write(run, name, rows)
    digest = sum(by_hand(n.split("/")[1], *row) for n, rows in ROWS.items() for row in rows)
    manifest = {
        "tokens": {
            "train": {"rows": 3, "tokens": 6, "supervised_tokens": 4},
            "eval": {"rows": 1, "tokens": 2, "supervised_tokens": 0},
        },
        "digest": f"{digest % 2**256:064x}",
        "counts": {"kept": 0, "dropped": {}},
        "files": summarize_files(run, ROWS),
    }
    return run, manifest


def test_tables_as_they_were_written_are_accepted(data):
    run, manifest = data
    verify_tables(run.root, manifest)
    del manifest["files"]  # of an earlier version
    verify_tables(run.root, manifest)


def test_the_digest_of_files_is_that_of_the_tokenized_rows(data):
    rows = [
        (name.split("/")[1], TokenRow(id=id, input_ids=ids, loss_weights=weights))
        for name, rows in ROWS.items()
        for id, ids, weights in rows
    ]
    assert f"{table_digest(rows):064x}" == data[1]["digest"]


def test_the_summary_of_a_file_does_not_depend_on_its_batches(data):
    run, manifest = data
    name = "tokens/train/00000.arrow"
    write(run, name, ROWS[name], batch_rows=100)
    assert summarize_file(run, name) == manifest["files"][name]
    assert manifest["files"][name]["rows"] == 2
    assert manifest["files"][name]["tokens"] == 4
    assert manifest["files"][name]["supervised_tokens"] == 3


FIRST = ROWS["tokens/train/00000.arrow"]


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        (FIRST[:1], "has 1 rows instead of 2"),
        (FIRST + FIRST[:1], "has 3 rows instead of 2"),
        ([FIRST[0], ("é", [8], [1.0])], "other content"),
        ([FIRST[0], ("e", [7], [1.0])], "other content"),
        ([("a", [1, 2, 3], [0.0, 1.0, 0.5]), FIRST[1]], "other content"),
        ([("a", [1, 2], [0.0, 1.0]), ("é", [7, 3], [1.0, 0.25])], "other content"),
        ([FIRST[0], ("é", [7], [0.0])], "2 supervised tokens instead of 3"),
    ],
)
def test_other_rows_are_refused_by_the_name_of_their_file(data, rows, line):
    run, manifest = data
    write(run, "tokens/train/00000.arrow", rows)
    with pytest.raises(UserError, match=line) as refusal:
        verify_tables(run.root, manifest)
    assert "tokens/train/00000.arrow" in str(refusal.value)
    del manifest["files"]
    with pytest.raises(UserError, match="does not agree with its manifest"):
        verify_tables(run.root, manifest)


def test_a_row_that_changed_its_split_is_found(data):
    run, manifest = data
    del manifest["files"]
    for split in manifest["tokens"].values():
        split.clear()
    run.move("tokens/train/00001.arrow", "tokens/eval/00001.arrow")
    with pytest.raises(UserError, match="do not match its digest"):
        verify_tables(run.root, manifest)


def test_missing_foreign_and_damaged_files_are_named(data):
    run, manifest = data
    write(run, "tokens/eval/00001.arrow", FIRST)
    with pytest.raises(UserError, match=r"tokens/eval/00001\.arrow is not one of its files"):
        verify_tables(run.root, manifest)
    run.remove("tokens/eval/00001.arrow")
    run.remove("tokens/train/00001.arrow")
    with pytest.raises(UserError, match=r"tokens/train/00001\.arrow is missing"):
        verify_tables(run.root, manifest)
    run.write_text("tokens/train/00001.arrow", "half a file")
    with pytest.raises(UserError, match=r"tokens/train/00001\.arrow cannot be read"):
        verify_tables(run.root, manifest)


@pytest.mark.parametrize("name", ["tokens/train/00000.arrow", "conversations/00000.parquet"])
def test_a_file_with_a_byte_changed_or_its_end_cut_off_is_named_whatever_its_reader_raises(
    data, name
):
    run, manifest = data
    (Path(run.root) / "conversations").mkdir()
    pq.write_table(pa.table({"id": ["a"] * 4}), run.path("conversations/00000.parquet"))
    manifest["files"]["conversations/00000.parquet"] = {"rows": 4}
    manifest["counts"] = {"kept": 4, "dropped": {}}
    path = Path(run.path(name))
    whole, refused = path.read_bytes(), 0
    for place in range(0, len(whole), 31):
        changed = whole[:place] + bytes([whole[place] ^ 0x81]) + whole[place + 1 :]
        for damaged in (changed, whole[:place]):
            path.write_bytes(damaged)
            try:
                verify_tables(run.root, manifest, ALL_TABLES)
            except UserError as error:
                refused += name in str(error)
    assert refused > len(whole) / 31


@pytest.mark.parametrize("key", ["digest", "tokens", "files", "counts"])
@pytest.mark.parametrize("value", [3, "x", ["x"], {"train": 3}])
def test_an_edited_manifest_is_one_line(data, key, value):
    run, manifest = data
    with pytest.raises(UserError, match=r"damaged|does not agree"):
        verify_tables(run.root, manifest | {key: value})


@pytest.mark.parametrize(
    "change",
    [
        {"length": pa.array([9], pa.int32())},
        {"loss_weights": pa.array([[0.5]], pa.list_(pa.float32()))},
        {"input_ids": pa.array([None], pa.list_(pa.int32()))},
    ],
)
def test_a_row_whose_columns_disagree_is_refused(data, change):
    run, manifest = data
    columns = {
        "id": pa.array(["c"]),
        "input_ids": pa.array([[1, 2]], pa.list_(pa.int32())),
        "loss_weights": pa.array([[0.0, 1.0]], pa.list_(pa.float32())),
        "length": pa.array([2], pa.int32()),
    }
    table = pa.table(columns | change, TOKENS)
    with (
        run.writing("tokens/train/00001.arrow") as stream,
        pa.ipc.new_file(stream, TOKENS) as writer,
    ):
        writer.write_table(table)
    with pytest.raises(UserError, match=r"tokens/train/00001\.arrow cannot be read"):
        verify_tables(run.root, manifest)


def test_conversations_and_drops_are_compared_with_the_counts(data):
    """Not with the token rows: `--long split` makes several of one conversation."""
    run, manifest = data
    manifest["counts"] = {"kept": 2, "dropped": {"duplicate": 1, "malformed": 2}}
    files = manifest["files"] | {
        "conversations/00000.parquet": {"rows": 2},
        "dropped/00000.parquet": {"rows": 3},
    }
    check_totals(run.root, files, manifest)
    for table in ("conversations", "dropped"):
        for rows in (0, 5):
            other = files | {f"{table}/00000.parquet": {"rows": rows}}
            with pytest.raises(UserError, match=f"{table}/ has {rows} rows instead of"):
                check_totals(run.root, other, manifest)
    del files["dropped/00000.parquet"]
    with pytest.raises(UserError, match="dropped/ has 0 rows instead of 3"):
        check_totals(run.root, files, manifest)


def test_all_tables_are_verified_where_that_is_asked_for(data):
    run, manifest = data
    (Path(run.root) / "conversations").mkdir()
    pq.write_table(pa.table({"id": ["a"] * 4}), run.path("conversations/00000.parquet"))
    with pytest.raises(UserError, match=r"conversations/00000\.parquet is not one of its files"):
        verify_tables(run.root, manifest, ALL_TABLES)
    manifest["files"]["conversations/00000.parquet"] = {"rows": 4}
    manifest["counts"] = {"kept": 4, "dropped": {}}
    verify_tables(run.root, manifest, ALL_TABLES)
    verify_tables(run.root, manifest)


def test_no_tables_at_all_are_refused(tmp_path, data):
    _, manifest = data
    with pytest.raises(UserError, match="is missing"):
        verify_tables(str(tmp_path / "elsewhere"), manifest)


def test_rows_of_parquet_files_are_counted(tmp_path):
    run = RunDir.open(str(tmp_path))
    pq.write_table(pa.table({"id": ["a", "b"]}), tmp_path / "x.parquet")
    found = summarize_files(run, ["x.parquet"])
    assert found == {"x.parquet": {"rows": 2}}
    with pytest.raises(UserError, match="2 rows instead of 1,000"):
        check_files(run.root, found, {"x.parquet": {"rows": 1000}})


def test_tables_on_s3_are_verified(s3, data):
    local, manifest = data
    for name in ROWS:
        with open(local.path(name), "rb") as file:
            s3.put_object(Bucket="bucket", Key=f"data/{name}", Body=file.read())
    verify_tables("s3://bucket/data", manifest)
    s3.delete_object(Bucket="bucket", Key="data/tokens/eval/00000.arrow")
    with pytest.raises(UserError, match=r"tokens/eval/00000\.arrow is missing"):
        verify_tables("s3://bucket/data", manifest)
