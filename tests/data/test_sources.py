"""Reading: every format, and what cannot be read comes out as a Drop."""

import bz2
import gzip
import io
import json
import lzma
import os
import random
import tarfile
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ochat_ray.data import parquet_records
from ochat_ray.data.records import records_of
from ochat_ray.data.sources import read_file
from ochat_ray.schema import Conversation, Drop, Reason
from tests.pages import share_page

TURNS = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]
ITEM = {"id": "a", "conversations": TURNS}


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def read(path):
    records = list(read_file(path))
    return (
        [r for r in records if isinstance(r, Conversation)],
        [r for r in records if isinstance(r, Drop)],
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("array.json", json.dumps([ITEM, ITEM])),
        ("pretty.json", json.dumps([ITEM, ITEM], indent=2)),
        ("bom.json", b"\xef\xbb\xbf" + json.dumps([ITEM, ITEM]).encode()),
        ("lines.jsonl", f"{json.dumps(ITEM)}\n\n{json.dumps(ITEM)}"),
        ("lines.json", f"{json.dumps(ITEM)}\n{json.dumps(ITEM)}\n"),
    ],
)
def test_sharegpt_json_in_every_shape(tmp_path, name, content):
    conversations, drops = read(write(tmp_path / name, content))
    assert [c.id for c in conversations] == ["a", "a"]
    assert [(t.role, t.text) for t in conversations[0].turns] == [
        ("user", "hi"),
        ("assistant", "hello"),
    ]
    assert drops == []


def test_parquet_of_sharegpt(tmp_path):
    pq.write_table(pa.Table.from_pylist([ITEM]), tmp_path / "x.parquet")
    conversations, _ = read(str(tmp_path / "x.parquet"))
    assert [t.text for t in conversations[0].turns] == ["hi", "hello"]


def test_parquet_is_read_from_a_zip_or_compressed_and_in_batches_of_bounded_size(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(parquet_records, "BATCH_BYTES", 1)
    table = pa.Table.from_pylist([{**ITEM, "id": str(n)} for n in range(5)])
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=2)
    conversations, _ = read(str(tmp_path / "x.parquet"))
    assert [c.id for c in conversations] == ["0", "1", "2", "3", "4"]


LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 99\n"


@pytest.mark.parametrize("name", ["x.parquet", "x.json", "x.jsonl", "x.zip", "x.tar.gz"])
def test_a_pointer_of_git_lfs_is_unreadable_and_says_so(tmp_path, name):
    conversations, (drop,) = read(write(tmp_path / name, LFS_POINTER))
    assert conversations == []
    assert (drop.reason, drop.id) == (Reason.UNREADABLE, name)
    assert "git lfs pull" in drop.detail


@pytest.mark.parametrize(
    "content",
    [b"", b"PAR1", b"hello", b"PAR1" + bytes(100) + b"PAR1", b"PAR1\xff\xff\xff\x7fPAR1"],
)
def test_what_is_no_parquet_is_unreadable(tmp_path, content):
    conversations, (drop,) = read(write(tmp_path / "x.parquet", content))
    assert (conversations, drop.reason) == ([], Reason.UNREADABLE)


@pytest.mark.parametrize("place", [0.2, 0.5, 0.8, 0.99])
def test_parquet_cut_off_or_damaged_is_a_drop(tmp_path, place):
    table = pa.Table.from_pylist([{**ITEM, "id": str(n)} for n in range(1000)])
    path = tmp_path / "x.parquet"
    pq.write_table(table, path, row_group_size=100, compression="zstd")
    data = bytearray(path.read_bytes())
    at = int(place * len(data))
    path.write_bytes(data[:at])
    assert [d.reason for d in read(str(path))[1]] == [Reason.UNREADABLE]
    data[at : at + 20] = bytes(20)
    path.write_bytes(data)
    conversations, drops = read(str(path))
    assert conversations or drops


def test_a_value_of_parquet_that_python_cannot_hold_costs_its_row(tmp_path):
    rows = [{**ITEM, "id": str(n)} for n in range(3)]
    times = pa.array([0, 2**62, 0], pa.int64()).cast(pa.timestamp("us"))
    pq.write_table(pa.Table.from_pylist(rows).append_column("time", times), tmp_path / "x.parquet")
    conversations, (drop,) = read(str(tmp_path / "x.parquet"))
    assert [c.id for c in conversations] == ["0", "2"]
    assert "column 'time'" in drop.detail


@pytest.mark.parametrize(("cut", "whole"), [(1, 3), (2, 2), (20, 2), (130, 1)])
def test_a_file_cut_off_keeps_the_whole_ones_and_reports_the_torn_one(tmp_path, cut, whole):
    text = json.dumps([ITEM, ITEM, ITEM])
    conversations, drops = read(write(tmp_path / "x.json", text[:-cut]))
    assert len(conversations) == whole
    assert [d.reason for d in drops] == [Reason.TORN]
    assert "the file ends" in drops[0].detail


def test_a_torn_last_line(tmp_path):
    text = json.dumps(ITEM)
    conversations, drops = read(write(tmp_path / "x.jsonl", f"{text}\n{text[:-5]}"))
    assert len(conversations) == 1
    assert [d.reason for d in drops] == [Reason.TORN]


def test_one_bad_line_does_not_cost_the_next(tmp_path):
    text = json.dumps(ITEM)
    conversations, drops = read(write(tmp_path / "x.jsonl", f"{text}\n{{bad\n{text}\n"))
    assert len(conversations) == 2
    assert [(d.reason, d.detail[:6]) for d in drops] == [(Reason.MALFORMED, "line 2")]


def test_text_that_is_not_json_is_malformed(tmp_path):
    conversations, drops = read(write(tmp_path / "x.json", "hello there"))
    assert conversations == []
    assert [d.reason for d in drops] == [Reason.MALFORMED]


def test_a_line_beyond_all_measure_costs_only_itself(tmp_path, monkeypatch):
    monkeypatch.setattr("ochat_ray.data.sources.MAX_LINE_BYTES", 1000)
    path = write(tmp_path / "x.jsonl", f"{'x' * 5000}\n{json.dumps(ITEM)}\n{'y' * 3000}")
    conversations, drops = read(path)
    assert [c.id for c in conversations] == ["a"]
    assert [(d.id, d.reason) for d in drops] == [
        ("x.jsonl:1", Reason.TOO_LARGE),
        ("x.jsonl:3", Reason.TOO_LARGE),
    ]


HTML_TURNS = [
    {"from": "human", "value": "<div>is this HTML?</div>"},
    {"from": "gpt", "value": '<div class="markdown prose"><p>Yes</p></div>'},
]


def test_lone_halves_of_surrogate_pairs_and_nan_cost_at_most_their_record(tmp_path):
    bad = '{"id": "bad", "score": NaN, "conversations": [{"from": "human", "value": "x\\udce9"}]}'
    good = json.dumps(ITEM)
    array, lines = f"[{good},{bad},{good}]", f"{good}\n{bad}\n{good}"
    for name, content in (("x.json", array), ("x.jsonl", lines)):
        conversations, drops = read(write(tmp_path / name, content))
        assert [c.id for c in conversations if c.id != "bad"] == ["a", "a"]
        assert len(conversations) + len(drops) == 3


@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x.json.gz"])
@pytest.mark.parametrize("content", [b"", b"[]", b" \n "])
def test_a_file_without_a_record_is_counted(tmp_path, name, content):
    conversations, (drop,) = read(write(tmp_path / name, content))
    assert (conversations, drop.reason) == ([], Reason.NO_DATA)


@pytest.mark.parametrize("name", ["x.html", "x.json", "x.parquet", "x.zip", "x.tar"])
def test_a_file_that_may_not_be_read_or_is_none_is_a_drop(tmp_path, monkeypatch, name):
    (tmp_path / name).mkdir()
    _, (drop,) = read(str(tmp_path / name))
    assert drop.reason == Reason.UNREADABLE
    (tmp_path / name).rmdir()
    os.mkfifo(tmp_path / name)
    assert read(str(tmp_path / name))[1][0].detail == "not a regular file"
    (tmp_path / name).unlink()
    assert "No such file" in read(str(tmp_path / name))[1][0].detail

    def refused(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refused)
    assert [d.detail for d in read(str(tmp_path / name))[1]] == ["Permission denied"]


@pytest.mark.parametrize("name", ["x.html", "x.json", "x.jsonl", "x.parquet", "x.zip", "x.tar.gz"])
def test_a_store_that_fails_is_no_fault_of_the_file(tmp_path, monkeypatch, name):
    path = write(tmp_path / name, share_page(HTML_TURNS))

    class Failing(io.FileIO):
        def read(self, size=-1):
            raise ConnectionResetError(104, "Connection reset by peer")

    monkeypatch.setattr("builtins.open", lambda file, *_, **__: Failing(file))
    monkeypatch.setattr(os, "read", lambda *_: Failing(path).read())
    with pytest.raises(ConnectionResetError):
        read(path)


def test_a_name_that_is_not_utf8_is_read_and_shown_with_replacement_characters(tmp_path):
    path = os.fsencode(tmp_path) + b"/caf\xe9.html"
    with open(path, "wb") as file:
        file.write(share_page(HTML_TURNS))
    (conversation,), drops = read(os.fsdecode(path))
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
    conversations, (drop,) = read(write(tmp_path / "x.json", content))
    assert [c.id for c in conversations] == ["a", "a"]
    assert drop.detail == "'surprise' (KeyError)"


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_compressed_pages(tmp_path, pack):
    suffix = {"gzip": "gz", "bz2": "bz2", "lzma": "xz"}[pack.__module__]
    page = pack(share_page(HTML_TURNS, id="1"))
    (conversation,), _ = read(write(tmp_path / f"x.html.{suffix}", page))
    assert conversation.id == "1"
    conversations, (drop,) = read(write(tmp_path / f"x.html.{suffix}", page[:-9]))
    assert conversations == []
    assert drop.reason in (Reason.UNREADABLE, Reason.TORN)


def test_a_share_page_and_its_avatar(tmp_path):
    page = share_page([*HTML_TURNS], id="abc", model="Model: GPT-4", avatarUrl="data:secret")
    (conversation,), drops = read(write(tmp_path / "x.html", page))
    assert (conversation.id, conversation.model) == ("abc", "Model: GPT-4")
    assert [turn.html for turn in conversation.turns] == [False, True]
    assert conversation.turns[0].text == "<div>is this HTML?</div>"
    assert "secret" not in repr(conversation)
    assert drops == []


def test_a_page_without_an_id_goes_by_its_file_s_name(tmp_path):
    (conversation,), _ = read(write(tmp_path / "abc.html", share_page(HTML_TURNS)))
    assert conversation.id == "abc"


def archive(path, pages):
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for name, page in pages.items():
                file.writestr(name, page)
    else:
        with tarfile.open(path, "w:gz" if path.suffix != ".tar" else "w") as file:
            for name, page in pages.items():
                info = tarfile.TarInfo(name)
                info.size = len(page)
                file.addfile(info, io.BytesIO(page))
    return str(path)


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz", "x.tgz", "x.zip"])
def test_pages_in_an_archive_are_the_same_pages(tmp_path, name):
    pages = {f"a/{i}.html": share_page(HTML_TURNS, id=str(i)) for i in range(3)}
    path = archive(tmp_path / name, pages | {"a/readme.txt": b"no page"})
    conversations, drops = read(path)
    assert [(c.id, c.source) for c in conversations] == [
        (str(i), f"{path}!a/{i}.html") for i in range(3)
    ]
    assert drops == []


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz", "x.zip"])
def test_an_archive_cut_off_keeps_what_was_whole(tmp_path, name):
    noise = random.Random(0).randbytes(20_000).hex().encode()  # so that gzip cannot hide the cut
    pages = {f"{i}.html": share_page(HTML_TURNS, id=str(i)) + noise for i in range(5)}
    path = tmp_path / name
    archive(path, pages)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    conversations, drops = read(str(path))
    assert [d.reason for d in drops] == [Reason.TORN]
    assert len(conversations) == (0 if name == "x.zip" else 2)  # a zip's table is at its end


def test_what_is_no_archive_is_one_drop(tmp_path):
    for name in ("x.tar", "x.tar.gz", "x.zip"):
        conversations, drops = read(write(tmp_path / name, "hello"))
        assert (conversations, [d.reason for d in drops]) == ([], [Reason.TORN])
