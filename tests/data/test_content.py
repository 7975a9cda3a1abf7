"""Inputs are what they contain, not what they are called."""

import hashlib
import os

import pytest

from ochat_ray.data import content
from ochat_ray.data.content import UNREADABLE, Content, changes, content_digest, content_digests
from ochat_ray.data.inputs import InputFile, find_files


def content_of(folder):
    return Content.of(find_files([str(folder)]))


@pytest.fixture
def folder(tmp_path):
    for name, text in {"a.html": "one", "sub/b.html": "two", "c.json": "[]"}.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text(text)
    return tmp_path / "in"


def test_the_digest_is_that_of_the_bytes(folder):
    assert content_digest(str(folder / "a.html")) == hashlib.sha256(b"one").hexdigest()
    assert content_digest(str(folder / "none.html")) == UNREADABLE


def test_a_large_file_is_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(content, "_CHUNK", 7)
    (tmp_path / "x").write_bytes(b"0123456789" * 10)
    digest = hashlib.sha256(b"0123456789" * 10).hexdigest()
    assert content_digest(str(tmp_path / "x")) == digest


def test_a_moved_and_renamed_folder_has_the_same_content(folder, tmp_path):
    before = content_of(folder).identity()
    moved = folder.rename(tmp_path / "elsewhere")
    (moved / "sub/b.html").rename(moved / "0.html")
    assert content_of(moved).identity() == before
    assert (before["files"], before["bytes"]) == (3, 8)


def test_other_bytes_of_the_same_name_size_and_time_are_other_content(folder):
    before, file = content_of(folder).identity(), folder / "sub/b.html"
    times = file.stat()
    file.write_text("too")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert content_of(folder).identity() != before


def test_a_copy_within_the_inputs_is_other_content(folder):
    before = content_of(folder).identity()["digest"]
    (folder / "copy.html").write_text("one")
    assert content_of(folder).identity()["digest"] != before


def test_few_files_are_named_and_many_are_not(folder, monkeypatch):
    described = content_of(folder).described()
    names = {os.path.relpath(file["path"], folder): file["bytes"] for file in described}
    assert names == {"a.html": 3, "sub/b.html": 3, "c.json": 2}
    assert {file["sha256"] for file in described} == {
        hashlib.sha256(text).hexdigest() for text in (b"one", b"two", b"[]")
    }
    monkeypatch.setattr(content, "LISTED_FILES", 2)
    whole = content_of(folder)
    assert whole.described() == whole.identity()


def test_digests_come_in_the_order_of_the_files(folder):
    names = [str(folder / name) for name in ("sub/b.html", "a.html", "sub/b.html")]
    one, two, three = content_digests(names)
    assert one == three != two


def test_changes_of_a_listing_by_name():
    before = [InputFile("a", 1, 1), InputFile("b", 1, 1), InputFile("c", 1, 1)]
    after = [InputFile("d", 1, 1), InputFile("c", 2, 1), InputFile("a", 1, 1)]
    found = changes(before, after)
    assert (found.changed, found.gone, found.new) == (("c",), ("b",), ("d",))
    assert changes(before, reversed(before)) == content.Changes((), (), ())


def test_objects_on_s3_have_the_content_of_their_bytes(s3):
    s3.put_object(Bucket="bucket", Key="in/a.html", Body=b"one")
    (file,) = find_files(["s3://bucket/in"])
    assert (file.size, file.mtime_ns > 0) == (3, True)
    assert content_digest(file.uri) == hashlib.sha256(b"one").hexdigest()
    assert content_digest("s3://bucket/in/b.html") == UNREADABLE
