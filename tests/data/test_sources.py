"""Reading: every format, and what cannot be read comes out as a Drop."""

import io
import json
import random
import tarfile
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ochat_ray.schema import Reason
from tests.data.reading import (
    ITEM,
    read_path,
    write,
)
from tests.pages import share_page


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
    conversations, drops = read_path(write(tmp_path / name, content))
    assert [c.id for c in conversations] == ["a", "a"]
    assert [(t.role, t.text) for t in conversations[0].turns] == [
        ("user", "hi"),
        ("assistant", "hello"),
    ]
    assert drops == []


def test_parquet_of_sharegpt(tmp_path):
    pq.write_table(pa.Table.from_pylist([ITEM]), tmp_path / "x.parquet")
    conversations, _ = read_path(str(tmp_path / "x.parquet"))
    assert [t.text for t in conversations[0].turns] == ["hi", "hello"]


@pytest.mark.parametrize(("cut", "whole"), [(1, 3), (2, 2), (20, 2), (130, 1)])
def test_a_file_cut_off_keeps_the_whole_ones_and_reports_the_torn_one(tmp_path, cut, whole):
    text = json.dumps([ITEM, ITEM, ITEM])
    conversations, drops = read_path(write(tmp_path / "x.json", text[:-cut]))
    assert len(conversations) == whole
    assert [d.reason for d in drops] == [Reason.TORN]
    assert "the file ends" in drops[0].detail


def test_a_torn_last_line(tmp_path):
    text = json.dumps(ITEM)
    conversations, drops = read_path(write(tmp_path / "x.jsonl", f"{text}\n{text[:-5]}"))
    assert len(conversations) == 1
    assert [d.reason for d in drops] == [Reason.TORN]


def test_one_bad_line_does_not_cost_the_next(tmp_path):
    text = json.dumps(ITEM)
    conversations, drops = read_path(write(tmp_path / "x.jsonl", f"{text}\n{{bad\n{text}\n"))
    assert len(conversations) == 2
    assert [(d.reason, d.detail[:6]) for d in drops] == [(Reason.MALFORMED, "line 2")]


def test_text_that_is_not_json_is_malformed(tmp_path):
    conversations, drops = read_path(write(tmp_path / "x.json", "hello there"))
    assert conversations == []
    assert [d.reason for d in drops] == [Reason.MALFORMED]


def test_a_line_beyond_all_measure_costs_only_itself(tmp_path, monkeypatch):
    monkeypatch.setattr("ochat_ray.data.sources.MAX_LINE_BYTES", 1000)
    path = write(tmp_path / "x.jsonl", f"{'x' * 5000}\n{json.dumps(ITEM)}\n{'y' * 3000}")
    conversations, drops = read_path(path)
    assert [c.id for c in conversations] == ["a"]
    assert [(d.id, d.reason) for d in drops] == [
        ("x.jsonl:1", Reason.TOO_LARGE),
        ("x.jsonl:3", Reason.TOO_LARGE),
    ]


HTML_TURNS = [
    {"from": "human", "value": "<div>is this HTML?</div>"},
    {"from": "gpt", "value": '<div class="markdown prose"><p>Yes</p></div>'},
]


def test_a_share_page_and_its_avatar(tmp_path):
    page = share_page([*HTML_TURNS], id="abc", model="Model: GPT-4", avatarUrl="data:secret")
    (conversation,), drops = read_path(write(tmp_path / "x.html", page))
    assert (conversation.id, conversation.model) == ("abc", "Model: GPT-4")
    assert [turn.html for turn in conversation.turns] == [False, True]
    assert conversation.turns[0].text == "<div>is this HTML?</div>"
    assert "secret" not in repr(conversation)
    assert drops == []


def test_a_page_without_an_id_goes_by_its_file_s_name(tmp_path):
    (conversation,), _ = read_path(write(tmp_path / "abc.html", share_page(HTML_TURNS)))
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
    conversations, drops = read_path(path)
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
    conversations, drops = read_path(str(path))
    assert [d.reason for d in drops] == [Reason.TORN]
    assert len(conversations) == (0 if name == "x.zip" else 2)  # a zip's table is at its end


def test_what_is_no_archive_is_one_drop(tmp_path):
    for name in ("x.tar", "x.tar.gz", "x.zip"):
        conversations, drops = read_path(write(tmp_path / name, "hello"))
        assert (conversations, [d.reason for d in drops]) == ([], [Reason.TORN])
