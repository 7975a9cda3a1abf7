"""A group's parts keep their numbers and content, whatever its earlier attempts were."""

import json

from ochat_ray.data import parts
from ochat_ray.data.group_parts import parts_of_group
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
