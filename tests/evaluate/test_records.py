"""Records survive kills, full disks and second runs."""

import json
import os
import subprocess

import pytest

from ochat_ray.errors import UserError
from ochat_ray.evaluate.records import Records, key_of


def test_a_key_is_of_the_values_and_not_of_their_order():
    assert key_of({"a": 1, "b": "é"}) == key_of({"b": "é", "a": 1})
    assert key_of({"a": 1}) != key_of({"a": 2})
    assert key_of("a", "b") != key_of("ab")
    assert len(key_of("\ud800")) == 32  # half a character, as in broken dumps


def test_what_was_written_is_there_again_and_once(tmp_path):
    path = tmp_path / "deep" / "answers.jsonl"
    with Records(path) as records:
        records.add("k1", {"text": "one\ntwo"})
        records.add("k1", {"text": "other"})
    with Records(path) as records:
        assert [record["text"] for record in records] == ["one\ntwo"]
        assert "k1" in records
        assert len(path.read_text().splitlines()) == 1


def test_a_line_that_was_cut_off_does_not_count_and_spoils_nothing(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text('{"key": "k1", "n": 1}\n{"key": "k2", "te')
    with Records(path) as records:
        assert "k2" not in records
        records.add("k3", {"n": 3})
    with Records(path) as records:
        assert [record["key"] for record in records] == ["k1", "k3"]


def test_lines_of_something_else_are_passed_over(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_bytes(b'[1]\n{"key": 5}\nnull\n\xff\xfe\n{"key": "k"}\n')
    with Records(path) as records:
        assert [record["key"] for record in records] == ["k"]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"text": 5},
        {"text": "a", "prompt_tokens": "many"},
        {"text": "a", "finish_reason": []},
        {"text": "a", "logprobs": {"A": 1}},
        {"text": "a", "changed": [1]},
        {"text": "a", "failed": True},
    ],
)
def test_a_record_without_what_is_read_from_it_is_none(tmp_path, fields):
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps({"key": "k", **fields}) + "\n")
    with Records(path, ("text",)) as records:
        assert "k" not in records
        records.add("k", {"text": "b"})
    with Records(path, ("text",)) as records:
        assert records["k"]["text"] == "b"


def test_probabilities_of_another_form_are_none(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text(
        '{"key": "k", "text": "A", "logprobs": [5, {"top_logprobs": [{"token": 1}]}]}\n'
    )
    with Records(path, ("text",)) as records:
        assert [entry["top_logprobs"] for entry in records["k"]["logprobs"]] == [[], []]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in ("file", "file/under"):
        with pytest.raises(UserError, match=r"--output .* cannot be created"):
            Records(tmp_path / folder / "answers.jsonl")


def test_only_one_writes(tmp_path):
    with (
        Records(tmp_path / "a.jsonl"),
        pytest.raises(UserError, match="another evaluation"),
        Records(tmp_path / "a.jsonl"),
    ):
        pass


def test_a_full_disk_is_an_error_and_loses_no_record(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if subprocess.run(mount, check=False).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        with Records(disk / "a.jsonl") as records:
            records.add("k1", {"text": "x"})
            with pytest.raises(OSError, match="No space left"):
                fill(records)
        whole = [json.loads(line) for line in _lines(disk / "a.jsonl")]
        assert len(whole) > 10
        with Records(disk / "a.jsonl") as records:
            assert list(records) == whole
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def fill(records):
    for number in range(100):
        records.add(f"more{number}", {"text": "y" * 3000})


def _lines(path):
    content = path.read_bytes()
    cut = content if content.endswith(b"\n") else content[: content.rfind(b"\n") + 1]
    return [line for line in cut.splitlines() if line.endswith(b"}")]


def test_a_kill_in_the_middle_loses_only_what_was_under_way(tmp_path):
    script = (
        "import os, sys; from pathlib import Path\n"
        "from ochat_ray.evaluate.records import Records\n"
        "with Records(Path(sys.argv[1])) as records:\n"
        "    for n in range(50): records.add(f'k{n}', {'n': n})\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    path = tmp_path / "a.jsonl"
    subprocess.run([os.sys.executable, "-c", script, str(path)], check=False)
    with Records(path) as records:
        assert len(records) == 50
