"""JSON in every shape: each record is read, and a broken one costs only itself."""

import io
import json

import pytest

from ochat_ray.data import json_values
from ochat_ray.data.json_records import json_records
from ochat_ray.data.json_values import Broken
from ochat_ray.schema import Reason


def record(name, text="hi"):
    return {"id": name, "conversations": [{"from": "human", "value": text}]}


RECORDS = [record("a"), record("b", 'a {b} [c] "d"'), record("c", "é😀")]
A, B, C = (json.dumps(r) for r in RECORDS)


def read(content, *, by_lines=False, **options):
    data = content if isinstance(content, bytes) else content.encode()
    records = list(json_records(io.BytesIO(data), by_lines=by_lines, **options))
    broken = [r for r in records if isinstance(r, Broken)]
    return [r for r in flat(records) if not isinstance(r, Broken)], broken


def flat(values):
    """The records of values, which may be small objects that hold lists of records."""
    for value in values:
        members = value.values() if isinstance(value, dict) else ()
        lists = [
            m for m in members if isinstance(m, list) and m and m[0].keys() >= RECORDS[0].keys()
        ]
        yield from (record for records in lists for record in records) if lists else [value]


def ids(records):
    return [r["id"] for r in records]


SHAPES = {
    "array": json.dumps(RECORDS),
    "indented array": json.dumps(RECORDS, indent=2),
    "characters beyond ASCII": json.dumps(RECORDS, ensure_ascii=False),
    "lines": f"{A}\n{B}\n{C}\n",
    "lines without an end": f"{A}\n\n{B}\n{C}",
    "lines of Windows": f"{A}\r\n{B}\r\n{C}\r\n",
    "lines of the old Mac": f"{A}\r{B}\r{C}\r",
    "one after the other": f"{A}{B} {C}",
    "indented, one after the other": "\n".join(json.dumps(r, indent=2) for r in RECORDS),
    "an array's inside": f"{A},\n{B},\n{C},",
    "arrays one after the other": f"[{A}]\n[{B},{C}]\n",
    "a trailing comma": f"[{A},{B},{C},]",
    "a list in an object": json.dumps({"version": 2, "meta": {"x": [1]}, "data": RECORDS}),
    "named as a record's turns": json.dumps({"conversations": RECORDS}),
    "two lists in an object": f'{{"train": [{A}, {B}], "test": [{C}], "n": 3}}',
    "such an object in each line": f'{{"data": [{A}, {B}]}}\n{{"data": [{C}]}}\n',
    "U+2028 in a text": f"{A}\n{json.dumps(record('b', chr(0x2028)), ensure_ascii=False)}\n{C}",
}


@pytest.mark.parametrize("by_lines", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_each_record_is_read_whatever_the_shape_and_the_file_s_name(shape, by_lines):
    records, broken = read(SHAPES[shape], by_lines=by_lines)
    assert (ids(records), broken) == (["a", "b", "c"], [])


@pytest.mark.parametrize("shape", SHAPES)
def test_each_record_is_read_in_small_pieces(shape, monkeypatch):
    monkeypatch.setattr(json_values, "_CHUNK", 3)
    records, broken = read(SHAPES[shape])
    assert (ids(records), broken) == (["a", "b", "c"], [])


@pytest.mark.parametrize("shape", ["array", "lines", "lines of Windows"])
@pytest.mark.parametrize(
    "encoding", ["utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-16-be", "utf-32-be"]
)
def test_every_encoding_of_unicode_is_read_with_a_mark_or_without(shape, encoding):
    records, broken = read(SHAPES[shape].encode(encoding), by_lines=True)
    assert (ids(records), broken) == (["a", "b", "c"], [])
    assert records[1] == RECORDS[1]


BAD = {
    "a word": '{"id": nope, "conversations": []}',
    "a control character": '{"id": "a\nb", "conversations": []}',
    "an escape": '{"id": "\\x", "conversations": []}',
    "a missing colon": '{"id" "b", "conversations": [{"from": "human", "value": "x"}]}',
    "a missing quote": '{"id": "b", "conversations": [{"from": "human", "value": "x}]}',
    "a quote too many": '{"id": "b", "conversations": [{"from": "human", "value": "he "said" x"}]}',
    "a missing brace": '{"id": "b", "conversations": [{"from": "human", "value": "x"}]',
    "a missing bracket": '{"id": "b", "conversations": [{"from": "human", "value": "x"}}',
    "a half": '{"id": "b", "conver',
    "brackets beyond all depth": '{"id": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "bytes that are not UTF-8": b'{"id": "caf\xe9", "conversations": []}',
}


def joined(before, bad, after, between):
    pieces = (p if isinstance(p, bytes) else p.encode() for p in (before, bad, after))
    return between.join(pieces)


@pytest.mark.parametrize("bad", BAD)
def test_a_broken_element_of_an_array_costs_only_itself(bad):
    records, broken = read(joined(f"[{A}", BAD[bad], f"{B},{C}]", b",\n"))
    assert ids(records) == ["a", "b", "c"]
    assert [b.reason for b in broken] == [Reason.MALFORMED]
    assert broken[0].place == "#1"


@pytest.mark.parametrize("bad", [bad for bad in BAD if bad != "a control character"])
def test_a_broken_line_costs_only_itself(bad):
    records, broken = read(joined(A, BAD[bad], f"{B}\n{C}", b"\n"), by_lines=True)
    assert ids(records) == ["a", "b", "c"]
    assert [(b.reason, b.place) for b in broken] == [(Reason.MALFORMED, ":2")]


@pytest.mark.parametrize("bad", BAD)
def test_the_first_element_may_be_the_broken_one(bad):
    records, broken = read(joined("[", BAD[bad], f",{B},{C}]", b""))
    assert ids(records) == ["b", "c"]
    assert [b.place for b in broken] == ["#0"]


@pytest.mark.parametrize("bad", BAD)
def test_a_broken_record_in_an_object_s_list_costs_only_itself(bad):
    before, after = f'{{"n": 1, "data": [{A}', f'{C}], "end": 2}}'
    records, broken = read(joined(before, BAD[bad], after, b","))
    assert ids(records) == ["a", "c"]
    assert [b.reason for b in broken] == [Reason.MALFORMED]


def test_what_was_not_read_is_counted_in_bytes():
    bad = '{"id": "b", "conversations": [{"from": "human", "value": "é}]}'
    _, (broken,) = read(f"[{A},{bad},{C}]")
    assert broken.detail.endswith(f"; {len(bad.encode()) + 1} bytes were not read")


def test_turns_of_a_broken_record_are_no_records():
    turns = ", ".join(json.dumps({"from": "human", "value": f"q{n}"}) for n in range(5))
    records, broken = read(f'[{A}, {{"id": "b", "conversations": [{turns}, {C}]')
    assert ids(records) == ["a", "c"]
    assert len(broken) == 1


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity", "9" * 5000, "1e999"])
def test_numbers_that_python_writes_are_read(word):
    element = f'{{"score": {word}, "id": "b", "conversations": []}}'
    for content, by_lines in ((f"[{A},{element},{C}]", False), (f"{A}\n{element}\n{C}", True)):
        records, broken = read(content, by_lines=by_lines)
        assert (ids(records), broken) == (["a", "b", "c"], [])


@pytest.mark.parametrize("half", ["\\udce9", "\\ud83d", "\\ud83d x"])
def test_half_a_surrogate_pair_is_left_to_the_record_s_reader(half):
    element = f'{{"id": "b", "text": "{half}"}}'
    for content, by_lines in ((f"[{A},{element},{C}]", False), (f"{A}\n{element}\n{C}", True)):
        records, broken = read(content, by_lines=by_lines)
        assert (ids(records), broken) == (["a", "b", "c"], [])
        assert "\ud800" <= records[1]["text"][0] <= "\udfff"


@pytest.mark.parametrize("by_lines", [False, True])
def test_half_a_surrogate_pair_in_utf16_costs_its_record(by_lines):
    content = f"{A}\n{B}\n{C}" if by_lines else f"[{A}, {B}, {C}]"
    data = content.replace("[c]", "\ud83d").encode("utf-16", "surrogatepass")
    records, broken = read(data, by_lines=by_lines)
    assert ids(records) == ["a", "c"]
    assert [b.reason for b in broken] == [Reason.MALFORMED]


def test_zeros_at_the_end_are_one_torn_line():
    records, broken = read(f"{A}\n{B}\n".encode() + bytes(1000), by_lines=True)
    assert ids(records) == ["a", "b"]
    assert [b.reason for b in broken] == [Reason.TORN]


@pytest.mark.parametrize("by_lines", [False, True])
def test_a_record_beyond_all_measure_costs_only_itself(by_lines, monkeypatch):
    monkeypatch.setattr(json_values, "_CHUNK", 64)
    large = json.dumps(record("large", "x" * 5000))
    content = f"{A}\n{large}\n{C}" if by_lines else f"[{A},{large},{C}]"
    records, broken = read(content, by_lines=by_lines, max_size=1000)
    assert ids(records) == ["a", "c"]
    assert [b.reason for b in broken] == [Reason.TOO_LARGE]


def test_a_list_of_records_in_an_object_may_be_larger_than_a_record_may_be(monkeypatch):
    monkeypatch.setattr(json_values, "_CHUNK", 64)
    many = [record(str(n)) for n in range(100)]
    records, broken = read(json.dumps({"version": 1, "data": many}), max_size=1000)
    assert (len(records), broken) == (100, [])


@pytest.mark.parametrize(
    "bomb", ["[" * 200_000, '{"a":' * 100_000, '[{"a":[' * 50_000, '{"a":"' * 50_000]
)
def test_what_is_made_to_exhaust_the_parser_is_one_broken_record(bomb):
    records, broken = read(bomb)
    assert (records, len(broken)) == ([], 1)


@pytest.mark.parametrize("cut", range(1, 60))
def test_an_array_cut_off_anywhere_keeps_the_whole_records(cut):
    records, broken = read(f"[{A},{C}]"[:-cut])
    assert ids(records) == (["a", "c"] if cut == 1 else ["a"])
    assert [b.reason for b in broken] == [Reason.TORN]


@pytest.mark.parametrize("by_lines", [False, True])
def test_a_list_of_turns_is_one_value(by_lines):
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    text = json.dumps(turns)
    for content, number in ((text, 1), (f"{text}\n{text}\n", 2), (f"[{text}, {text}]", 2)):
        records, broken = read(content, by_lines=by_lines)
        assert (records, broken) == ([turns] * number, [])


def test_messages_of_trees_are_records_of_their_own():
    messages = [{"message_id": "a", "parent_id": None, "role": "prompter", "text": "x"}] * 3
    assert len(read(json.dumps(messages))[0]) == 3


def test_a_record_with_tools_is_one_record():
    tool = {"type": "function", "output": {}, "data": []}
    one = {"id": "a", "messages": [{"role": "user", "content": "x"}], "tools": [tool]}
    records, broken = read(json.dumps(one))
    assert (records, broken) == ([one], [])


def test_a_conversation_of_rounds_is_one_record_whatever_its_size(monkeypatch):
    rounds = [{"input": "hi", "output": "hello"}] * 3
    item = {"source": "s", "conversation": rounds}
    monkeypatch.setattr(json_values, "_CHUNK", 20)
    content = "\n".join([json.dumps(item)] * 3)
    assert read(content) == ([item] * 3, [])


def test_blank_lines_without_number_are_passed_at_once():
    found, (broken,) = read(f"{A}\n" + "\n" * 3000 + f"  {C}\nx\n")
    assert ids(found) == ["a", "c"]
    assert broken.place == ":3003"
