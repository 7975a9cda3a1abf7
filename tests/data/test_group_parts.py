"""A group's parts keep their numbers and content, whatever its earlier attempts were."""

import gzip
import hashlib
import json
import os
from collections import Counter

import pytest

from ochat_ray.data import group_parts, sources
from ochat_ray.data.content import content_digests
from ochat_ray.data.group_parts import clean_group, parts_of_group
from ochat_ray.data.parts import clean as parts
from ochat_ray.data.parts.clean import clean_part
from ochat_ray.data.records import DEFAULTS
from ochat_ray.errors import UserError
from ochat_ray.run_dir import RunDir
from ochat_ray.schema import Drop, Reason
from tests.pages import share_page

TURNS = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "<p>hello</p>"}]


def begin(tmp_path, uris, *, complete=0, session="one"):
    first, found = parts_of_group(
        RunDir.open(str(tmp_path / "out")),
        "attempts/0.json",
        uris,
        session=session,
        is_complete=lambda n: n < complete,
        rules=(),
    )
    return first, [[r.reason if isinstance(r, Drop) else r.id for r in part] for part in found]


def test_a_large_file_is_given_up_behind_its_complete_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "PART_ROWS", 2)
    records = [{"id": str(n), "conversations": TURNS} for n in range(5)]
    (tmp_path / "x.json").write_text(json.dumps(records))
    uris = [str(tmp_path / "x.json")]
    for _ in range(3):  # each ends in the second part
        assert begin(tmp_path, uris, complete=1) == (0, [["0", "1"], ["2", "3"], ["4"]])
    assert begin(tmp_path, uris, complete=1) == (1, [[Reason.UNREADABLE]])
    assert begin(tmp_path, uris, complete=1, session="two") == (1, [[Reason.UNREADABLE]])


def test_pages_are_the_same_parts_when_they_are_read_one_by_one(tmp_path):
    uris = []
    for n in range(3):
        (tmp_path / f"{n}.html").write_bytes(share_page(TURNS, id=str(n)))
        uris.append(str(tmp_path / f"{n}.html"))
    assert {str(begin(tmp_path, uris)) for _ in range(6)} == {"(0, [['0', '1', '2']])"}


def clean_pages(tmp_path, monkeypatch, opened):
    """Clean a group of pages in this process; count how often each file is opened."""
    work = RunDir.open(str(tmp_path / "work"))
    paths = sorted((tmp_path / "in").iterdir())
    files = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in paths]
    work.write_json("inputs/000000.json", files)

    def count(path, *args, open_file=os.open, **options):
        opened[os.path.basename(path)] += 1
        return open_file(path, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", count)
        summaries = list(clean_group(work, 0, (), options=DEFAULTS, session="one"))
    assert sum(summary["read"] for summary in summaries) == len(paths)
    return work.load_json("content/000000.json")


def test_a_page_is_read_once_and_recorded_before_the_first_part(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    for n in range(5):
        (tmp_path / f"in/{n}.html").write_bytes(share_page(TURNS, id=str(n)))
    (tmp_path / "in/5.html.gz").write_bytes(gzip.compress(share_page(TURNS, id="5")))
    (tmp_path / "in/6.html").mkdir()
    monkeypatch.setattr(parts, "PART_ROWS", 2)
    opened = Counter()

    def write_part(run, *args):
        assert run.exists("content/000000.json")
        return clean_part(run, *args)

    monkeypatch.setattr(group_parts, "clean_part", write_part)
    content = clean_pages(tmp_path, monkeypatch, opened)
    assert content == content_digests([str(p) for p in sorted((tmp_path / "in").iterdir())])
    assert {opened[f"{n}.html"] for n in range(5)} == {1}


def test_a_page_that_is_too_large_is_hashed_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MAX_PAGE_BYTES", 100)
    (tmp_path / "in").mkdir()
    for n in range(2):
        (tmp_path / f"in/{n}.html").write_bytes(b"<html>" * (10 + 90 * n))
    first, second = clean_pages(tmp_path, monkeypatch, Counter())
    assert second == hashlib.sha256(b"<html>" * 100).hexdigest()
    assert first == hashlib.sha256(b"<html>" * 10).hexdigest()


def test_a_page_that_changed_since_an_earlier_attempt_is_refused(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    for n in range(2):
        (tmp_path / f"in/{n}.html").write_bytes(share_page(TURNS, id=str(n)))
    clean_pages(tmp_path, monkeypatch, Counter())
    for name in ("done/groups/000000.json", "done/clean/000000-0000.json"):
        (tmp_path / "work" / name).unlink()
    (tmp_path / "in/1.html").write_bytes(share_page(TURNS, id="other"))
    with pytest.raises(UserError, match=r"1\.html was changed"):
        clean_pages(tmp_path, monkeypatch, Counter())
    assert not (tmp_path / "work/done/clean/000000-0000.json").exists()
