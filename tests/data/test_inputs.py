"""Which files are read, and in what portions."""

import pytest

from ochat_ray.data import inputs
from ochat_ray.data.inputs import InputFile, Listing, find_files, groups
from ochat_ray.errors import UserError
from ochat_ray.schema import PassedOver


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")


def found(*paths):
    files = find_files([str(path) for path in paths])
    return [file.uri for file in files if isinstance(file, InputFile)]


def passed_over(*paths):
    files = find_files([str(path) for path in paths])
    return [(file.source, file.kind) for file in files if isinstance(file, PassedOver)]


def test_a_folder_is_searched_and_each_file_taken_once(tmp_path):
    touch(tmp_path, "b.json", "sub/a.jsonl", "note.txt", ".hidden/c.html", "p/1.html", "x.tar.gz")
    expected = [str(tmp_path / name) for name in ("b.json", "p/1.html", "sub/a.jsonl", "x.tar.gz")]
    assert found(tmp_path, tmp_path / "b.json", tmp_path / "sub") == expected


def test_a_link_back_up_is_not_followed_for_ever(tmp_path):
    touch(tmp_path, "a/b/1.html")
    (tmp_path / "a/b/up").symlink_to(tmp_path / "a")
    (tmp_path / "side").symlink_to(tmp_path / "a/b")
    assert found(tmp_path) == [str(tmp_path / "a/b/1.html"), str(tmp_path / "side/1.html")]


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


def test_pages_are_grouped_and_other_files_are_not(monkeypatch):
    monkeypatch.setattr(inputs, "GROUP_FILES", 3)
    monkeypatch.setattr(inputs, "GROUP_BYTES", 100)
    sizes = [("1.html", 10), ("2.htm", 10), ("a.json", 999), ("3.html.gz", 10), ("4.html", 10)]
    sizes += [("5.html", 90), ("6.html", 500), ("7.html", 1)]
    grouped = [[f.uri for f in g] for g in groups(InputFile(name, size) for name, size in sizes)]
    assert grouped == [
        ["a.json"], ["1.html", "2.htm", "3.html.gz"], ["4.html", "5.html"], ["6.html"], ["7.html"],
    ]  # fmt: skip


def test_a_listing_does_not_depend_on_the_order(monkeypatch):
    monkeypatch.setattr(inputs, "LISTED_FILES", 2)
    files = [InputFile(f"{n}.html", n) for n in range(5)]
    one, other = Listing.of(files).summary(), Listing.of(reversed(files)).summary()
    assert one == other
    assert (one["files"], one["bytes"]) == (5, 10)
    assert Listing.of([*files[:4], InputFile("4.html", 3)]).summary() != one
    assert Listing.of(files[:2]).summary() == [
        {"path": "0.html", "bytes": 0},
        {"path": "1.html", "bytes": 1},
    ]
