"""Reading: every format, and what cannot be read comes out as a Drop."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ochat_ray.data.sources import find_files, parse_item, read_file
from ochat_ray.errors import UserError
from ochat_ray.schema import Conversation, Drop, Reason

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


def test_openai_messages_and_text_parts():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    conversation = parse_item(
        {"messages": [{"role": "user", "content": parts}]}, source="x", index=7
    )
    assert isinstance(conversation, Conversation)
    assert conversation.id == "x#7"
    assert conversation.turns[0].text == "ab"


@pytest.mark.parametrize(("cut", "whole"), [(1, 3), (2, 2), (20, 2), (130, 1)])
def test_a_file_cut_off_keeps_the_whole_ones_and_reports_the_torn_one(tmp_path, cut, whole):
    text = json.dumps([ITEM, ITEM, ITEM])
    conversations, drops = read(write(tmp_path / "x.json", text[:-cut]))
    assert len(conversations) == whole
    assert [d.reason for d in drops] == [Reason.TORN]
    assert "premature EOF" in drops[0].detail


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


@pytest.mark.parametrize(
    ("item", "detail"),
    [
        (3, "must be an object, not int"),
        ({"a": 1}, "no list named"),
        ({"conversations": "x"}, "no list named"),
        ({"conversations": [1]}, "turn 0: not an object"),
        ({"conversations": [{"from": "robot", "value": ""}]}, "unknown role 'robot'"),
        ({"conversations": [{"from": "human"}]}, "turn 0: no text"),
        ({"conversations": [{"from": "human", "value": "\ud83d"}]}, "surrogate"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "no text"),
    ],
)
def test_a_record_that_is_no_conversation_says_why(item, detail):
    drop = parse_item(item, source="x", index=0)
    assert isinstance(drop, Drop)
    assert drop.reason == Reason.MALFORMED
    assert detail in drop.detail


def test_a_folder_is_searched_and_each_file_taken_once(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.json", "sub/a.jsonl", "note.txt"):
        write(tmp_path / name, "[]")
    files = find_files([str(tmp_path), str(tmp_path / "b.json")])
    assert files == [str(tmp_path / "b.json"), str(tmp_path / "sub/a.jsonl")]


@pytest.mark.parametrize(
    ("name", "line"),
    [("missing.json", "does not exist"), ("x.txt", "not read"), ("empty", "no file to read")],
)
def test_an_unusable_input_is_one_clear_line(tmp_path, name, line):
    (tmp_path / "empty").mkdir()
    write(tmp_path / "x.txt", "")
    with pytest.raises(UserError, match=line):
        find_files([str(tmp_path / name)])
