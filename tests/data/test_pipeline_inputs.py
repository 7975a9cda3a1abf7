"""Inputs of every kind in one folder: all are counted, and none ends the job."""

import json
import os
import signal
import zipfile

import pyarrow.parquet as pq
import pytest

from ochat_ray.data import clean, pipeline
from ochat_ray.data.config import PrepareConfig
from tests.pages import share_page

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


def turns(name):
    return [{"from": "human", "value": f"q {name}"}, {"from": "gpt", "value": f"<p>a {name}</p>"}]


def record(name):
    return json.dumps({"id": name, "conversations": turns(name)})


def config(tmp_path, tokenizer_directory, **changes):
    options = {
        "recipe": "openchat",
        "input": (str(tmp_path / "in"),),
        "output": str(tmp_path / "out"),
        "tokenizer": tokenizer_directory,
        "keep_model": "any",
        "eval_ratio": 0.3,
    }
    return PrepareConfig(**options | changes)


def test_read_is_kept_and_dropped_and_passed_over(tmp_path, tokenizer_directory):
    folder = tmp_path / "in"
    (folder / ".hidden").mkdir(parents=True)
    (folder / "notes.txt").write_text("x")
    (folder / ".hidden/a.html").write_text("x")
    (folder / "lfs.parquet").write_text("version https://git-lfs.github.com/spec/v1\n")
    (folder / "nan.json").write_text(f'[{record("1")}, {{"id": nope}}, {record("2")}]')
    (folder / "mark.jsonl").write_bytes(b"\xef\xbb\xbf" + record("3").encode())
    with zipfile.ZipFile(folder / "export.zip", "w") as archive:
        archive.writestr("conversations.json", f"[{record('4')}, {record('5')}]")
        archive.writestr("picture.png", "x")
        archive.writestr("__MACOSX/._picture.png", "x")
    with open(os.fsencode(folder) + b"/caf\xe9.html", "wb") as file:
        file.write(share_page(turns("6"), id="6"))
    os.mkfifo(folder / "pipe.html")
    manifest = pipeline.prepare(config(tmp_path, tokenizer_directory))
    counts = manifest["counts"]
    assert counts["kept"] == 6
    assert counts["dropped"] == {"malformed": 1, "unreadable": 1}
    assert counts["passed_over"] == {
        ".png": 1,
        ".txt": 1,
        "archive noise": 1,
        "hidden": 1,
        "special file": 1,
    }
    assert counts["read"] == 13


def with_a_deadly_one(rules):
    """The rules, and one that kills the worker at one conversation each time."""

    def die(conversation):
        if conversation.id == "deadly":
            os.kill(os.getpid(), signal.SIGKILL)
        return conversation

    return lambda **options: [die, *rules(**options)]


@pytest.mark.parametrize("alone", [False, True])
def test_a_page_that_kills_its_worker_each_time_is_dropped(
    tmp_path, tokenizer_directory, monkeypatch, alone
):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ["deadly", *map(str, range(5))]:
        if alone and name == "deadly":
            (folder / "deadly.json").write_text(record("deadly"))
        else:
            (folder / f"{name}.html").write_bytes(share_page(turns(name), id=name))
    monkeypatch.setattr(clean, "rules", with_a_deadly_one(clean.rules))
    manifest = pipeline.prepare(config(tmp_path, tokenizer_directory))
    assert manifest["counts"] == {
        "read": 6,
        "kept": 5,
        "dropped": {"unreadable": 1},
        "passed_over": {},
    }
    (drop,) = pq.read_table(tmp_path / "out/dropped").to_pylist()
    assert drop["detail"] == "its reading ended the worker 3 times"
