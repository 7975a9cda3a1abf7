"""Listing: files to read, their groups, and files that are passed over."""

import contextlib
import json
import os
import socket
from collections import Counter
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from huggingface_hub import HfFileSystem

from ochat_ray.data import inputs
from ochat_ray.data.content import Content
from ochat_ray.data.inputs import InputFile, Listing, check_apart, find_files, groups
from ochat_ray.data.sources import read_file
from ochat_ray.errors import UserError
from ochat_ray.run_dir import RunDir


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")


def found(*paths):
    return [file.uri for file in find_files([str(path) for path in paths])]


def passed_over(*paths):
    counts = Counter()
    list(find_files([str(path) for path in paths], counts))
    return counts


def test_a_folder_is_searched_and_each_file_taken_once(tmp_path):
    touch(tmp_path, "b.json", "sub/a.jsonl", "note.txt", ".hidden/c.html", "p/1.html", "x.tar.gz")
    expected = [str(tmp_path / name) for name in ("b.json", "p/1.html", "sub/a.jsonl", "x.tar.gz")]
    assert found(tmp_path, tmp_path / "b.json", tmp_path / "sub") == expected


def test_a_link_back_up_is_not_followed_for_ever(tmp_path):
    touch(tmp_path, "a/b/1.html")
    (tmp_path / "a/b/up").symlink_to(tmp_path / "a")
    (tmp_path / "side").symlink_to(tmp_path / "a/b")
    assert found(tmp_path) == [str(tmp_path / "a/b/1.html"), str(tmp_path / "side/1.html")]


OTHERS = {
    "notes.TXT": ".txt",
    "LICENSE": "no extension",
    "table.csv.gz": ".csv.gz",
    "v1.2/a.b/c": "no extension",
    ".gitignore": "hidden",
    ".git/config": "hidden",
    ".git/HEAD": "hidden",
    "p/.1.html": "hidden",
    "__MACOSX/p/._1.html": "archive noise",
    "p/._1.html": "archive noise",
    "p/.DS_Store": "archive noise",
    "p/Thumbs.db": "archive noise",
    "desktop.ini": "archive noise",
}


def test_whatever_is_not_read_is_counted_by_kind_and_a_hidden_folder_once(tmp_path):
    touch(tmp_path, "p/1.html", *OTHERS)
    assert found(tmp_path) == [str(tmp_path / "p/1.html")]
    assert passed_over(tmp_path) == {
        ".txt": 1,
        "no extension": 2,
        ".csv.gz": 1,
        "hidden": 3,
        "archive noise": 5,
    }


def test_a_file_passed_over_is_counted_once_however_often_it_is_named(tmp_path):
    touch(tmp_path, "p/1.html", "p/a.txt")
    assert passed_over(tmp_path, tmp_path / "p") == {".txt": 1}


def test_a_glob_counts_only_what_it_matches(tmp_path):
    touch(tmp_path, "a.txt", "b.csv", "c.json")
    assert passed_over(tmp_path / "*c*") == {".csv": 1}


def test_pipes_sockets_and_links_to_nowhere_are_not_opened(tmp_path):
    touch(tmp_path, "1.html")
    os.mkfifo(tmp_path / "2.html")
    (tmp_path / "3.html").symlink_to(tmp_path / "nowhere")
    (tmp_path / "4.html").symlink_to(tmp_path / "4.html")
    with socket.socket(socket.AF_UNIX) as listening, contextlib.chdir(tmp_path):
        listening.bind("5.html")
    assert found(tmp_path) == [str(tmp_path / "1.html")]
    assert passed_over(tmp_path) == {"special file": 2, "link": 2}
    with pytest.raises(UserError, match="not a regular file"):
        found(tmp_path / "2.html")


def test_a_folder_that_may_not_be_listed_is_left_to_reading_which_drops_it(tmp_path, monkeypatch):
    touch(tmp_path, "a/1.html", "b/2.html")
    scandir = os.scandir

    def refusing(path):
        if path.endswith("/a"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert found(tmp_path) == [str(tmp_path / "a"), str(tmp_path / "b/2.html")]


def test_names_that_are_not_utf8_are_listed(tmp_path):
    name = os.fsencode(tmp_path) + b"/caf\xe9.html"
    with open(name, "w"):
        pass
    assert found(tmp_path) == [os.fsdecode(name)]
    content = Content.of(find_files([str(tmp_path)]))
    assert json.dumps(content.described(), ensure_ascii=False).encode()
    RunDir.open(str(tmp_path / "out")).write_json("x.json", found(tmp_path))
    assert RunDir.open(str(tmp_path / "out")).read_json("x.json") == [os.fsdecode(name)]


def test_a_folder_of_other_kinds_only_is_named_with_what_it_holds(tmp_path):
    touch(tmp_path, "a.txt", "b.txt", "c.png")
    with pytest.raises(UserError, match=r"passed over: \.txt 2, \.png 1"):
        found(tmp_path)


class Hub(MemoryFileSystem):
    """A stand-in for the Hugging Face hub."""

    protocol = "hf"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    error: ClassVar[Exception | None] = None

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("hf://"))

    def info(self, path, **options):
        if self.error is not None:
            raise self.error
        return super().info(path, **options)


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(Hub, "store", {})
    monkeypatch.setattr(Hub, "error", None)
    known = dict(fsspec.registry)
    fsspec.register_implementation("hf", Hub, clobber=True)
    yield Hub()
    fsspec.register_implementation("hf", known.get("hf", HfFileSystem), clobber=True)


def test_a_data_set_on_the_hub_is_listed_and_read(hub):
    line = '{"id": "a", "conversations": [{"from": "human", "value": "hi"}]}'
    hub.pipe("datasets/me/chats/train.jsonl", line.encode())
    hub.pipe("datasets/me/chats/data/README.md", b"x")
    uri = "hf://datasets/me/chats"
    assert [u.replace("///", "//") for u in found(uri)] == [f"{uri}/train.jsonl"]
    assert passed_over(uri) == {".md": 1}
    (conversation,) = read_file(found(uri)[0])
    assert conversation.id == "a"


def test_a_hub_that_does_not_answer_is_one_clear_line(hub, monkeypatch):
    error = ConnectionError("[Errno -2] Name or service not known\nand more")
    monkeypatch.setattr(Hub, "error", error)
    with pytest.raises(UserError, match=r"cannot list hf://\S+: .*not known; check .*HF_TOKEN$"):
        found("hf://datasets/me/chats")


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.html", ["1.html", "2.html"]),
        ("?.html", ["1.html", "2.html"]),
        ("**/*.html", ["1.html", "2.html", "a/3.html", "a/b/4.html"]),
        ("a/*/*.html", ["a/b/4.html"]),
        ("[1].html", None),
    ],
)
def test_globs(tmp_path, pattern, names):
    touch(tmp_path, "1.html", "2.html", "a/3.html", "a/b/4.html", "a/b/5.txt")
    if names is None:
        with pytest.raises(UserError, match="does not exist"):
            found(tmp_path / pattern)
    else:
        assert found(tmp_path / pattern) == [str(tmp_path / name) for name in names]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("missing.json", "does not exist"),
        ("x.txt", "not read"),
        ("empty", "no file to read"),
        ("*.html", "no file to read"),
    ],
)
def test_an_unusable_input_is_one_clear_line(tmp_path, name, line):
    (tmp_path / "empty").mkdir()
    touch(tmp_path, "x.txt")
    with pytest.raises(UserError, match=line):
        found(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "output"),
    [
        ("data", "data"),
        ("data", "data/out"),
        ("data", "link/out"),
        ("link", "data/out"),
        ("data/*.json", "data"),
        ("data/**/*.parquet", "data/out"),
        ("link/out/*/*.parquet", "data/out"),
        ("data/out/conversations", "data/out"),
        ("data/out/conversations/00003.parquet", "data/out"),
        ("data/out/manifest.json", "data/out"),
    ],
)
def test_an_output_within_the_inputs_is_refused(tmp_path, name, output):
    (tmp_path / "data/out/conversations").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "data")
    with pytest.raises(UserError, match="lies in what --input"):
        check_apart([str(tmp_path / name)], str(tmp_path / output))


@pytest.mark.parametrize(
    ("name", "output"),
    [
        ("s3://bucket/data", "s3://bucket/data/out"),
        ("s3://bucket/data/", "s3://bucket/data"),
        ("s3://bucket/**/*.parquet", "s3://bucket/out"),
    ],
)
def test_an_output_within_inputs_of_a_store_is_refused(name, output):
    with pytest.raises(UserError, match="lies in what --input"):
        check_apart([name], output)


@pytest.mark.parametrize(
    ("name", "output"),
    [
        ("data/pages", "data"),
        ("data", "data2"),
        ("data2", "data"),
        ("data/*.html.gz", "data/out"),
        ("data/*.json", "data/out"),
        ("s3://bucket/data", "s3://bucket/data2"),
        ("s3://bucket/data", "gs://bucket/data/out"),
    ],
)
def test_an_output_beside_or_around_the_inputs_is_not(tmp_path, name, output):
    places = [uri if "://" in uri else str(tmp_path / uri) for uri in (name, output)]
    check_apart(places[:1], places[1])


def test_pages_are_grouped_and_other_files_are_not(monkeypatch):
    monkeypatch.setattr(inputs, "GROUP_FILES", 3)
    monkeypatch.setattr(inputs, "GROUP_BYTES", 100)
    sizes = [("1.html", 10), ("2.htm", 10), ("a.json", 999), ("3.html.gz", 10), ("4.html", 10)]
    sizes += [("5.html", 90), ("6.html", 500), ("7.html", 1)]
    grouped = [[f.uri for f in g] for g in groups(InputFile(name, size) for name, size in sizes)]
    assert grouped == [
        ["a.json"],
        ["1.html", "2.htm", "3.html.gz"],
        ["4.html", "5.html"],
        ["6.html"],
        ["7.html"],
    ]


def test_a_listing_does_not_depend_on_the_order_and_finds_a_change():
    files = [InputFile(f"{n}.html", n, 100 + n) for n in range(5)]
    stamp = Listing.of(files).stamp
    assert Listing.of(reversed(files)).stamp == stamp
    for changed in (InputFile("4.html", 3, 104), InputFile("4.html", 4, 105)):
        assert Listing.of([*files[:4], changed]).stamp != stamp
    assert Listing.of(files[:4]).stamp != stamp


def test_a_file_is_listed_with_its_size_and_time(tmp_path):
    touch(tmp_path, "a.json")
    (file,) = find_files([str(tmp_path)])
    assert (file.size, file.mtime_ns) == (1, (tmp_path / "a.json").stat().st_mtime_ns)
