"""Files that cannot be read, or only in part: a drop says why, and nothing ends the job."""

import bz2
import gzip
import io
import json
import lzma
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ochat_ray.data import parquet_records
from ochat_ray.data.records import records_of
from ochat_ray.schema import Reason
from tests.data.reading import (
    ITEM,
    read_path,
    write,
)
from tests.pages import share_page

HTML_TURNS = [
    {"from": "human", "value": "hi"},
    {"from": "gpt", "value": '<div class="markdown prose"><p>Yes</p></div>'},
]


def test_parquet_is_read_from_a_zip_or_compressed_and_in_batches_of_bounded_size(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(parquet_records, "BATCH_BYTES", 1)
    table = pa.Table.from_pylist([{**ITEM, "id": str(n)} for n in range(5)])
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=2)
    conversations, _ = read_path(str(tmp_path / "x.parquet"))
    assert [c.id for c in conversations] == ["0", "1", "2", "3", "4"]


LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 99\n"


@pytest.mark.parametrize("name", ["x.parquet", "x.json", "x.jsonl", "x.zip", "x.tar.gz"])
def test_a_pointer_of_git_lfs_is_unreadable_and_says_so(tmp_path, name):
    conversations, (drop,) = read_path(write(tmp_path / name, LFS_POINTER))
    assert conversations == []
    assert (drop.reason, drop.id) == (Reason.UNREADABLE, name)
    assert "git lfs pull" in drop.detail


@pytest.mark.parametrize(
    "content",
    [b"", b"PAR1", b"hello", b"PAR1" + bytes(100) + b"PAR1", b"PAR1\xff\xff\xff\x7fPAR1"],
)
def test_what_is_no_parquet_is_unreadable(tmp_path, content):
    conversations, (drop,) = read_path(write(tmp_path / "x.parquet", content))
    assert (conversations, drop.reason) == ([], Reason.UNREADABLE)


@pytest.mark.parametrize("place", [0.2, 0.5, 0.8, 0.99])
def test_parquet_cut_off_or_damaged_is_a_drop(tmp_path, place):
    table = pa.Table.from_pylist([{**ITEM, "id": str(n)} for n in range(1000)])
    path = tmp_path / "x.parquet"
    pq.write_table(table, path, row_group_size=100, compression="zstd")
    data = bytearray(path.read_bytes())
    at = int(place * len(data))
    path.write_bytes(data[:at])
    assert [d.reason for d in read_path(str(path))[1]] == [Reason.UNREADABLE]
    data[at : at + 20] = bytes(20)
    path.write_bytes(data)
    conversations, drops = read_path(str(path))
    assert conversations or drops


def test_a_value_of_parquet_that_python_cannot_hold_costs_its_row(tmp_path):
    rows = [{**ITEM, "id": str(n)} for n in range(3)]
    times = pa.array([0, 2**62, 0], pa.int64()).cast(pa.timestamp("us"))
    pq.write_table(pa.Table.from_pylist(rows).append_column("time", times), tmp_path / "x.parquet")
    conversations, (drop,) = read_path(str(tmp_path / "x.parquet"))
    assert [c.id for c in conversations] == ["0", "2"]
    assert "column 'time'" in drop.detail


def test_lone_halves_of_surrogate_pairs_and_nan_cost_at_most_their_record(tmp_path):
    bad = '{"id": "bad", "score": NaN, "conversations": [{"from": "human", "value": "x\\udce9"}]}'
    good = json.dumps(ITEM)
    array, lines = f"[{good},{bad},{good}]", f"{good}\n{bad}\n{good}"
    for name, content in (("x.json", array), ("x.jsonl", lines)):
        conversations, drops = read_path(write(tmp_path / name, content))
        assert [c.id for c in conversations if c.id != "bad"] == ["a", "a"]
        assert len(conversations) + len(drops) == 3


@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x.json.gz"])
@pytest.mark.parametrize("content", [b"", b"[]", b" \n "])
def test_a_file_without_a_record_is_counted(tmp_path, name, content):
    conversations, (drop,) = read_path(write(tmp_path / name, content))
    assert (conversations, drop.reason) == ([], Reason.NO_DATA)


@pytest.mark.parametrize("name", ["x.html", "x.json", "x.parquet", "x.zip", "x.tar"])
def test_a_file_that_may_not_be_read_or_is_none_is_a_drop(tmp_path, monkeypatch, name):
    (tmp_path / name).mkdir()
    _, (drop,) = read_path(str(tmp_path / name))
    assert drop.reason == Reason.UNREADABLE
    (tmp_path / name).rmdir()
    os.mkfifo(tmp_path / name)
    assert read_path(str(tmp_path / name))[1][0].detail == "not a regular file"
    (tmp_path / name).unlink()
    assert "No such file" in read_path(str(tmp_path / name))[1][0].detail

    def refused(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refused)
    assert [d.detail for d in read_path(str(tmp_path / name))[1]] == ["Permission denied"]


@pytest.mark.parametrize("name", ["x.html", "x.json", "x.jsonl", "x.parquet", "x.zip", "x.tar.gz"])
def test_a_store_that_fails_is_no_fault_of_the_file(tmp_path, monkeypatch, name):
    path = write(tmp_path / name, share_page(HTML_TURNS))

    class Failing(io.FileIO):
        def read(self, size=-1):
            raise ConnectionResetError(104, "Connection reset by peer")

    monkeypatch.setattr("builtins.open", lambda file, *_, **__: Failing(file))
    monkeypatch.setattr(os, "read", lambda *_: Failing(path).read())
    with pytest.raises(ConnectionResetError):
        read_path(path)


def test_a_name_that_is_not_utf8_is_read_and_shown_with_replacement_characters(tmp_path):
    path = os.fsencode(tmp_path) + b"/caf\xe9.html"
    with open(path, "wb") as file:
        file.write(share_page(HTML_TURNS))
    (conversation,), drops = read_path(os.fsdecode(path))
    assert conversation.id == "caf\N{REPLACEMENT CHARACTER}"
    assert conversation.source == f"{tmp_path}/caf\N{REPLACEMENT CHARACTER}.html"
    assert drops == []


def test_an_error_that_nobody_foresaw_costs_one_record_or_one_file(tmp_path, monkeypatch):
    def failing(item, **_):
        if item["id"] == "bad":
            raise KeyError("surprise")
        yield from records_of(item, **_)

    monkeypatch.setattr("ochat_ray.data.sources.records_of", failing)
    content = json.dumps([ITEM, {**ITEM, "id": "bad"}, ITEM])
    conversations, (drop,) = read_path(write(tmp_path / "x.json", content))
    assert [c.id for c in conversations] == ["a", "a"]
    assert drop.detail == "'surprise' (KeyError)"


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_compressed_pages(tmp_path, pack):
    suffix = {"gzip": "gz", "bz2": "bz2", "lzma": "xz"}[pack.__module__]
    page = pack(share_page(HTML_TURNS, id="1"))
    (conversation,), _ = read_path(write(tmp_path / f"x.html.{suffix}", page))
    assert conversation.id == "1"
    conversations, (drop,) = read_path(write(tmp_path / f"x.html.{suffix}", page[:-9]))
    assert conversations == []
    assert drop.reason in (Reason.UNREADABLE, Reason.TORN)
