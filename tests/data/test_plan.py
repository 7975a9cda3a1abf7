"""A run is what it reads and how; a resumed run goes on only with the same."""

import os
from dataclasses import replace

import pyarrow as pa
import pytest

from ochat_ray.data.config import PrepareConfig
from ochat_ray.data.content import Content
from ochat_ray.data.inputs import find_files
from ochat_ray.data.output import Output
from ochat_ray.data.plan import (
    check_inputs_stayed,
    completed_already,
    content_of,
    group_files,
    identity_of,
    make_plan,
    record_content,
)
from ochat_ray.data.verify import summarize_files
from ochat_ray.errors import UserError
from ochat_ray.run_dir import RunDir
from ochat_ray.schema import TOKENS

IDENTITY = {"seed": 42, "recipe": "openchat"}


@pytest.fixture
def config(tmp_path):
    for number in range(3):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / f"in/{number}.json").write_text(f"[{number}]")
    return PrepareConfig(input=(str(tmp_path / "in"),), output=str(tmp_path / "out"))


@pytest.fixture
def output(config):
    return Output(RunDir.open(config.output))


def read(plan, groups=(0, 1, 2)):
    """Record the content of these groups, as their tasks do first."""
    for group in groups:
        record_content(plan.work, group, group_files(plan.work, group))


def rewrite(path, text):
    """Other bytes of the same size, and the same time."""
    times = path.stat()
    assert len(text) == times.st_size
    path.write_text(text)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_a_new_run_has_a_work_folder_of_its_own(config, output):
    first = make_plan(config, output, IDENTITY)
    second = make_plan(config, output, IDENTITY)
    assert first.token != second.token
    assert not os.path.exists(first.work.root)
    assert second.work.root == f"{config.output}/.work-{second.token}"


def test_resume_continues_the_unfinished_run(config, output):
    first = make_plan(config, output, IDENTITY)
    read(first, groups=(0, 2))
    again = make_plan(replace(config, resume=True), output, IDENTITY)
    assert (again.token, again.groups) == (first.token, 3)
    read(again)
    assert content_of(again).identity() == Content.of(find_files(config.input)).identity()


def test_resume_without_an_unfinished_run_starts_clean(config, output):
    assert make_plan(replace(config, resume=True), output, IDENTITY).groups == 3


def test_resume_refuses_another_configuration_and_names_what_differs(config, output):
    make_plan(config, output, IDENTITY)
    with pytest.raises(UserError, match=r"another configuration \(seed\)"):
        make_plan(replace(config, resume=True), output, IDENTITY | {"seed": 1})


@pytest.mark.parametrize("groups", [(0, 1, 2), (1,)])
def test_resume_refuses_other_bytes_of_the_same_size_and_time(config, output, tmp_path, groups):
    read(make_plan(config, output, IDENTITY), groups)
    rewrite(tmp_path / "in/1.json", "[7]")
    with pytest.raises(UserError, match=r"in/1\.json was changed since .* without --resume"):
        make_plan(replace(config, resume=True), output, IDENTITY)


@pytest.mark.parametrize("groups", [(0, 1, 2), ()])
def test_resume_refuses_a_changed_or_missing_file_that_was_read_or_not(
    config, output, tmp_path, groups
):
    read(make_plan(config, output, IDENTITY), groups)
    file, resumed = tmp_path / "in/1.json", replace(config, resume=True)
    file.write_text("[11]")
    with pytest.raises(UserError, match=r"in/1\.json was changed"):
        make_plan(resumed, output, IDENTITY)
    file.unlink()
    with pytest.raises(UserError, match=r"in/1\.json is gone"):
        make_plan(resumed, output, IDENTITY)


def test_resume_accepts_a_file_that_was_read_and_only_touched(config, output, tmp_path):
    read(make_plan(config, output, IDENTITY))
    os.utime(tmp_path / "in/1.json", (1, 1))
    plan = make_plan(replace(config, resume=True), output, IDENTITY)
    check_inputs_stayed(config, plan)


def test_resume_names_new_files_and_does_not_read_them(config, output, tmp_path, capsys):
    read(make_plan(config, output, IDENTITY))
    (tmp_path / "in/3.json").write_text("[3]")
    plan = make_plan(replace(config, resume=True), output, IDENTITY)
    assert (
        f"1 input files are new since the run started and are not part of it, such as "
        f"{tmp_path / 'in/3.json'}" in capsys.readouterr().err
    )
    assert plan.groups == 3
    check_inputs_stayed(config, plan)


def test_a_task_that_is_run_again_refuses_what_was_changed_in_the_meantime(
    config, output, tmp_path
):
    plan = make_plan(config, output, IDENTITY)
    read(plan)
    read(plan)
    rewrite(tmp_path / "in/2.json", "[8]")
    with pytest.raises(UserError, match=r"in/2\.json was changed"):
        read(plan)


def test_a_file_that_changes_while_the_run_reads_is_found(config, output, tmp_path, capsys):
    plan = make_plan(config, output, IDENTITY)
    check_inputs_stayed(config, plan)
    (tmp_path / "in/3.json").write_text("[3]")
    check_inputs_stayed(config, plan)
    assert "1 input files are new" in capsys.readouterr().err
    os.utime(tmp_path / "in/1.json", (1, 1))
    with pytest.raises(UserError, match=r"in/1\.json was changed"):
        check_inputs_stayed(config, plan)


def complete(output, config):
    """A complete run of one token row, and its manifest."""
    table = pa.table(
        {"id": ["a"], "input_ids": [[1]], "loss_weights": [[1.0]], "length": [1]}, TOKENS
    )
    name = "tokens/train/00000.arrow"
    work = output.start_work("1" * 32)
    with work.writing(f"tables/{name}") as stream, pa.ipc.new_file(stream, TOKENS) as writer:
        writer.write_table(table)
    output.publish(work, [name])
    files = summarize_files(output.run, [name])
    manifest = {
        "digest": files[name]["digest"],
        "tokens": {"train": {"rows": 1}, "eval": {"rows": 0}},
        "files": files,
        "run": "a",
        "counts": {"kept": 0, "dropped": {}},
        "identity": IDENTITY | {"inputs": Content.of(find_files(config.input)).identity()},
    }
    output.run.write_json("manifest.json", manifest)
    return manifest


def test_a_complete_run_is_found_again_in_a_moved_folder(config, output, tmp_path, capsys):
    manifest = complete(output, config)
    assert completed_already(config, output, IDENTITY) == manifest
    moved = (tmp_path / "in").rename(tmp_path / "moved")
    (moved / "1.json").rename(moved / "9.json")
    config = replace(config, input=(str(moved),))
    assert completed_already(config, output, IDENTITY) == manifest
    assert "nothing to do" in capsys.readouterr().out


def test_other_bytes_of_the_same_size_are_another_run(config, output, tmp_path):
    complete(output, config)
    with pytest.raises(UserError, match=r"another configuration \(seed\)"):
        completed_already(config, output, IDENTITY | {"seed": 1})
    rewrite(tmp_path / "in/1.json", "[7]")
    with pytest.raises(UserError, match=r"another configuration \(inputs\)"):
        completed_already(config, output, IDENTITY)
    assert completed_already(replace(config, overwrite=True), output, IDENTITY) is None


def test_a_run_whose_tables_disagree_with_its_manifest_is_not_complete(config, output, capsys):
    complete(output, config)
    output.run.remove("tokens/train/00000.arrow")
    assert completed_already(config, output, IDENTITY) is None
    assert "tokens/train/00000.arrow is missing" in capsys.readouterr().err


@pytest.mark.parametrize("text", ['{"name": "my web application"}', "[]", "no JSON"])
def test_a_manifest_that_no_run_wrote_is_refused(config, output, text):
    output.run.write_text("manifest.json", text)
    with pytest.raises(UserError, match="was not written by a run of prepare"):
        completed_already(replace(config, overwrite=True), output, IDENTITY)


def test_a_questions_file_of_the_same_name_with_other_questions_is_another_run(
    config, tmp_path, tokenizer_directory
):
    config = replace(config, tokenizer=tokenizer_directory)
    questions, words = tmp_path / "question.jsonl", tmp_path / "words.txt"
    questions.write_text('{"question_id": 1, "text": "one"}')
    words.write_text("openai\n")
    config = replace(config, decontaminate=(str(questions),), blocked_words=(f"@{words}",))

    def identity(config):
        return identity_of(config, config.check())

    before = identity(config)
    renamed = questions.rename(tmp_path / "other.jsonl")
    assert identity(replace(config, decontaminate=(str(renamed),))) == before
    rewrite(renamed, '{"question_id": 1, "text": "two"}')
    assert identity(replace(config, decontaminate=(str(renamed),))) != before
    renamed.rename(questions)
    rewrite(questions, '{"question_id": 1, "text": "one"}')
    assert identity(config) == before
    words.write_text("google\n")
    assert identity(config) != before
    assert identity(replace(config, input=("elsewhere",))).values["seed"] == before.values["seed"]


def test_a_run_of_another_version_is_not_resumed(config, output):
    plan = make_plan(config, output, IDENTITY)
    older = plan.work.load_json("plan.json")
    del older["version"]
    plan.work.write_json("plan.json", older)
    with pytest.raises(UserError, match="another version of ochat-ray"):
        make_plan(replace(config, resume=True), output, IDENTITY)
    make_plan(config, output, IDENTITY)


@pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"resume": True}])
def test_data_of_an_earlier_version_is_named_and_stays(config, output, tmp_path, options):
    """It has neither a run's token in its manifest nor a record of files."""
    output.run.write_json("manifest.json", {"identity": {"seed": 42}, "digest": "a"})
    output.run.write_text("conversations/00000.parquet", "mine")
    with pytest.raises(UserError, match="holds data of an earlier version"):
        completed_already(replace(config, **options), output, IDENTITY)
    assert (tmp_path / "out/conversations/00000.parquet").read_text() == "mine"


def test_a_run_with_a_half_written_file_is_not_resumed_in_one_line(config, output):
    plan = make_plan(config, output, IDENTITY)
    plan.work.write_text("plan.json", '{"token": "a')
    with pytest.raises(UserError, match=r"plan\.json is damaged .* without --resume"):
        make_plan(replace(config, resume=True), output, IDENTITY)
    make_plan(config, output, IDENTITY)
