"""Nothing is deleted that no run wrote; what a run wrote does not mix with another's."""

import uuid

import pytest

from ochat_ray.data.output import PLAN, Output
from ochat_ray.errors import UserError
from ochat_ray.run_dir import RunDir

ONE, TWO = "1" * 32, "2" * 32
TABLES = ["tokens/train/00000.arrow", "conversations/00000.parquet", "dropped/00000.parquet"]


@pytest.fixture
def output(tmp_path):
    return Output(RunDir.open(str(tmp_path)))


def write_run(output, token):
    """A run that is complete, but for the removal of its work folder."""
    work = output.start_work(token)
    work.write_json(PLAN, {"token": token})
    for name in TABLES:
        work.write_text(f"tables/{name}", token)
    output.publish(work, TABLES)
    output.run.write_text("report.html", "")
    output.run.write_json("manifest.json", {})
    return work


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_what_runs_wrote_is_cleared_and_nothing_else(output, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/manifest.json").write_text("mine")
    (tmp_path / f".work-{TWO}").mkdir()  # of our kind, but not recorded
    (tmp_path / f".work-{TWO}/mine").write_text("mine")
    write_run(output, ONE)
    output.check_ownership()
    output.clear()
    assert files(tmp_path) == [
        ".run/written.json",
        f".work-{TWO}/mine",
        "notes.txt",
        "other/manifest.json",
    ]


@pytest.mark.parametrize(
    "name",
    ["conversations/chat.json", "tokens/mine/x.arrow", "dropped/x", "report.html", "manifest.json"],
)
def test_a_file_that_no_run_wrote_is_refused_in_one_line_and_stays(output, tmp_path, name):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match="was not written by a run of prepare") as refusal:
        output.check_ownership()
    assert str(tmp_path / name) in str(refusal.value)
    output.clear()
    assert (tmp_path / name).read_text() == "mine"


def test_a_foreign_file_beside_those_of_a_run_is_refused(output, tmp_path):
    write_run(output, ONE)
    (tmp_path / "tokens/train/00001.arrow").write_text("mine")
    with pytest.raises(UserError, match=r"tokens/train/00001\.arrow was not written"):
        output.check_ownership()


def test_half_a_file_of_a_killed_run_is_ours(output, tmp_path):
    write_run(output, ONE)
    halves = [
        f".tmp-{uuid.uuid4().hex}-manifest.json",
        f"tokens/train/.tmp-{uuid.uuid4().hex}-00000.arrow",
    ]
    for name in halves:
        (tmp_path / name).write_text("half")
    output.check_ownership()
    output.clear()
    assert files(tmp_path) == [".run/written.json"]


def test_a_late_task_of_another_run_reaches_no_table(output, tmp_path):
    late = write_run(output, ONE)
    output.clear()
    write_run(output, TWO)
    late.write_text(f"tables/{TABLES[0]}", "late")
    assert (tmp_path / TABLES[0]).read_text() == TWO
    output.clear_work()
    assert not list(tmp_path.glob(".work-*"))


def test_publishing_continues_after_a_kill(output, tmp_path):
    work = output.start_work(ONE)
    for name in TABLES:
        work.write_text(f"tables/{name}", ONE)
    output.publish(work, TABLES)
    work.write_text(f"tables/{TABLES[1]}", "again, the same")
    output.publish(work, TABLES)
    output.check_ownership()
    assert (tmp_path / TABLES[0]).read_text() == ONE
    assert (tmp_path / TABLES[1]).read_text() == "again, the same"


def test_a_run_is_unfinished_once_it_has_a_plan(output):
    assert output.unfinished() is None
    work = output.start_work(ONE)
    assert output.unfinished() is None
    work.write_json(PLAN, {"token": ONE})
    assert output.unfinished() == (ONE, {"token": ONE})
    assert output.has_work()
    output.clear_work()
    assert output.unfinished() is None
    assert not output.has_work()


def test_a_record_that_names_other_folders_deletes_none(output, tmp_path):
    (tmp_path / "mine").mkdir()
    output.run.write_json(".run/written.json", {"files": ["mine"], "work": ["mine", ".."]})
    output.clear()
    assert (tmp_path / "mine").exists()


def test_an_output_on_s3(s3):
    output = Output(RunDir.open("s3://bucket/out"))
    write_run(output, ONE)
    output.check_ownership()
    s3.put_object(Bucket="bucket", Key="out/tokens/train/mine.arrow", Body=b"mine")
    with pytest.raises(UserError, match=r"tokens/train/mine\.arrow was not written"):
        output.check_ownership()
    output.clear()
    kept = [o["Key"] for o in s3.list_objects_v2(Bucket="bucket")["Contents"]]
    assert [key for key in kept if not key.endswith("/")] == [
        "out/.run/written.json",
        "out/tokens/train/mine.arrow",
    ]


@pytest.mark.parametrize(
    "text", ["{", "[]", '"x"', "{}", '{"files": 3, "work": []}', '{"files": [1], "work": [2]}']
)
def test_a_damaged_record_is_one_line_and_deletes_nothing(output, tmp_path, text):
    write_run(output, ONE)
    (tmp_path / ".run/written.json").write_text(text)
    with pytest.raises(UserError, match=r"written\.json.* is damaged"):
        output.clear()
    assert (tmp_path / TABLES[0]).read_text() == ONE
