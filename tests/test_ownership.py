"""What no run recorded is neither deleted nor written over."""

import pytest
from pyarrow import fs as pafs

from ochat_ray.errors import UserError
from ochat_ray.ownership import RECORD, Ownership, is_safe, remove_empty_parents
from ochat_ray.run_dir import RunDir

TOKEN = "1" * 32


@pytest.fixture
def own(tmp_path):
    return Ownership(RunDir.open(str(tmp_path)), "train")


def test_recorded_files_are_removed_and_others_stay(own, tmp_path):
    own.record(["a.json", "folder/b"])
    own.start_work(TOKEN)
    half, named = f".tmp-{'0' * 32}-a.json", f"logs/events.{TOKEN}"
    mine = ["c.json", f".tmp-{'0' * 32}-c.json", "logs/events.1", f"events.{'2' * 32}"]
    for name in ("a.json", "folder/b", half, named, *mine):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    own.remove(["a.json", "folder/b", half, named, *mine])
    left = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert left == {RECORD, *mine}


def test_a_recorded_name_that_is_a_folder_now_stays(own, tmp_path):
    own.record(["a.json"])
    (tmp_path / "a.json").mkdir()
    own.remove(["a.json"])
    assert (tmp_path / "a.json").is_dir()


def test_what_no_run_recorded_is_in_the_way_links_that_lead_nowhere_included(own, tmp_path):
    own.record(["a.json"])
    (tmp_path / "a.json").write_text("ours")
    own.check(["a.json", "b.json"])
    (tmp_path / "b.json").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"b\.json was not written by a run of train"):
        own.check(["a.json", "b.json"])


def test_files_of_another_stage_stay_recorded(own):
    own.record(["a", "b"])
    own.record(["c"], instead_of=lambda name: name == "b")
    assert own.files() == {"a", "c"}
    own.forget(["a", "x"])
    assert own.files() == {"c"}


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x", "./x", "a//x"])
def test_a_record_cannot_lead_out_of_the_directory(own, tmp_path, name):
    assert not is_safe(name)
    target = tmp_path.parent / "x"
    target.write_text("mine")
    own.record([name])
    own.remove([name])
    assert target.read_text() == "mine"


@pytest.mark.parametrize("text", ["", '{"files": ["a', "[]", '{"files": [1], "work": []}'])
def test_a_damaged_record_is_one_line_with_the_way_out(own, tmp_path, text):
    own.record(["a"])
    (tmp_path / RECORD).write_text(text)
    with pytest.raises(UserError, match=rf"damaged.* --output, or remove {tmp_path}$"):
        own.files()


def test_folders_go_with_their_last_file_and_not_before(own, tmp_path):
    (tmp_path / "top/a/b").mkdir(parents=True)
    (tmp_path / "top/c/empty").mkdir(parents=True)
    remove_empty_parents(own.run, ["top/a/b/x", "top/c/y"], "top")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["c", "empty", "top"]


def test_a_record_that_a_store_gives_torn_is_read_again(own, monkeypatch):
    """pyarrow asks S3 for a file's size and then for so many bytes; it may grow in between."""
    store = Ownership(
        RunDir(pafs.SubTreeFileSystem(own.run.root, pafs.LocalFileSystem()), ""), "train"
    )
    store.record(["a"])
    whole, calls = RunDir.read_json, []

    def torn(run, name, *advice):
        calls.append(name)
        if len(calls) == 1:
            raise UserError("written.json is damaged")
        return whole(run, name, *advice)

    monkeypatch.setattr(RunDir, "read_json", torn)
    assert store.files() == {"a"}
    assert len(calls) == 2
