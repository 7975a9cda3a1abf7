"""A run that ends at any of its writes leaves nothing that a later run could mix in.

The passes run in this process, in place of Ray's tasks, so that every write can be the last.
"""

import json
import multiprocessing
import os
import random
import shutil
import time
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ochat_ray import run_lock
from ochat_ray.data import group_parts, pipeline
from ochat_ray.data.config import PrepareConfig
from ochat_ray.data.verify import ALL_TABLES, verify_tables
from ochat_ray.errors import UserError
from ochat_ray.lock_claims import LOCK_FOLDER, Owner, Timing
from ochat_ray.run_dir import RunDir, read_manifest

STRIDE = 17
"""Writes from one kill to the next; 1 kills at each."""


class Batch:
    """One item as Ray Data hands it to a task; Arrow alone has no type for some of them."""

    def __init__(self, item):
        self.item = item

    def __getitem__(self, key):
        return pa.array([self.item[key]])

    def to_pylist(self):
        return [self.item]


def in_this_process(items, transform):
    for item in items:
        result = transform(Batch(item))
        for table in [result] if isinstance(result, pa.Table) else result:
            yield json.loads(table["summary"][0].as_py())


@pytest.fixture(autouse=True)
def no_ray(monkeypatch):
    monkeypatch.setattr(pipeline, "_start_ray", lambda: None)
    monkeypatch.setattr(pipeline, "_map_summaries", in_this_process)
    monkeypatch.setattr(pipeline, "FILE_ROWS", 3)


def record(id, question):
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "fine"}]
    return {"id": id, "conversations": turns}


def write_inputs(folder, answers="0123"):
    folder.mkdir(exist_ok=True)
    for number, text in enumerate(answers):
        records = [record(f"{number}{i}", f"{text} and {i}?") for i in range(2)]
        records += [record("copy", "the same everywhere"), {"nothing": 1}]
        (folder / f"{number}.json").write_text(json.dumps(records))


@pytest.fixture
def config(tmp_path, tokenizer_directory):
    write_inputs(tmp_path / "in")
    return PrepareConfig(
        recipe="openchat",
        input=(str(tmp_path / "in"),),
        output=str(tmp_path / "out"),
        tokenizer=tokenizer_directory,
        keep_model="any",
        eval_ratio=0.3,
    )


def check(config, expected):
    manifest = read_manifest(config.output)
    verify_tables(config.output, manifest, ALL_TABLES)
    for key in ("digest", "counts", "tokens"):
        assert manifest[key] == expected[key]
    ids = pq.read_table(f"{config.output}/conversations")["id"].to_pylist()
    assert len(ids) == len({*ids}) == expected["counts"]["kept"]
    dropped = len(pq.read_table(f"{config.output}/dropped"))
    assert dropped == sum(expected["counts"]["dropped"].values())


def run_until(config, last, killed):
    """Run in this forked process and end it at one of its writes, as kill -9 does."""
    steps = iter(range(10**6))

    def live_or_die():
        if next(steps) == last:
            killed.set()
            os._exit(9)

    def counted(function):
        def run(*args):
            live_or_die()
            return function(*args)

        return run

    @contextmanager
    def writing(run, name, write=RunDir.writing):
        live_or_die()
        with write(run, name) as stream:
            yield stream
            stream.flush()
            live_or_die()  # and leave an unfinished file

    RunDir.move, RunDir.remove = counted(RunDir.move), counted(RunDir.remove)
    RunDir.writing = writing
    pipeline.prepare(config)
    os._exit(0)


def kill_at_write(config, last):
    """Run; return True if it was killed, else it is complete."""
    context = multiprocessing.get_context("fork")
    killed = context.Event()
    process = context.Process(target=run_until, args=(config, last, killed))
    process.start()
    process.join(60)
    assert process.exitcode == (9 if killed.is_set() else 0)
    return killed.is_set()


def kill_points(config, stride, first=0):
    """Kill runs at every so many writes, until one has fewer; the output is as each left it."""
    last = first
    while kill_at_write(config, last):
        yield last
        shutil.rmtree(config.output)
        last += stride
    assert last > 50


@pytest.fixture
def expected(config):
    manifest = pipeline.prepare(replace(config, output=f"{config.output}-undisturbed"))
    assert manifest["counts"]["kept"] == 9
    assert manifest["counts"]["dropped"] == {"malformed": 4, "duplicate": 3}
    return manifest


def leftovers(config):
    names = os.listdir(config.output)
    return [name for name in names if name.startswith((".work", ".tmp"))]


def test_a_run_killed_at_any_write_is_resumed(config, expected):
    for _ in kill_points(config, stride=STRIDE):
        pipeline.prepare(replace(config, resume=True))
        check(config, expected)
        assert leftovers(config) == []


def test_a_run_killed_at_any_write_is_started_clean(config, expected):
    for _ in kill_points(config, stride=STRIDE, first=1):
        pipeline.prepare(config)
        check(config, expected)
        assert leftovers(config) == []


def test_a_work_folder_that_lost_a_file_gives_the_same_run_or_one_line(
    config, expected, tmp_path, monkeypatch
):
    """Such as by a crash of the host, or by a rule that deletes old files."""
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "assemble", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pipeline.prepare(config)
    snapshot = tmp_path / "snapshot"
    shutil.move(config.output, snapshot)
    (work,) = snapshot.glob(".work-*")
    lost = {path.parent: path for path in sorted(work.rglob("*")) if path.is_file()}
    assert len(lost) > 10
    for path in [*lost, *lost.values()]:
        shutil.copytree(snapshot, config.output)
        place = f"{config.output}/{path.relative_to(snapshot)}"
        shutil.rmtree(place) if os.path.isdir(place) else os.remove(place)
        try:
            pipeline.prepare(replace(config, resume=True))
        except UserError:
            assert not os.path.exists(f"{config.output}/manifest.json")
        else:
            check(config, expected)
        shutil.rmtree(config.output)


def test_inputs_that_change_after_a_kill_are_refused_on_resume_and_read_by_a_clean_start(
    config, expected, tmp_path
):
    write_inputs(tmp_path / "in", "4567")
    other = pipeline.prepare(replace(config, output=f"{config.output}-other"))
    assert other["digest"] != expected["digest"]
    write_inputs(tmp_path / "in", "0123")
    for _ in kill_points(config, stride=STRIDE, first=2):
        complete = os.path.exists(f"{config.output}/manifest.json")
        write_inputs(tmp_path / "in", "4567")
        try:
            pipeline.prepare(replace(config, resume=True))
            check(config, other)  # nothing had been planned
        except UserError as refusal:
            assert "was changed" in str(refusal) or complete  # noqa: PT017
            pipeline.prepare(replace(config, overwrite=True))
            check(config, other)
        write_inputs(tmp_path / "in", "0123")


def test_a_kill_while_another_complete_run_is_overwritten(config, expected):
    other = replace(config, seed=7)
    for last in range(0, 200, 2 * STRIDE):
        shutil.rmtree(config.output, ignore_errors=True)
        pipeline.prepare(other)
        killed = kill_at_write(replace(config, overwrite=True), last)
        if os.path.exists(f"{config.output}/manifest.json"):
            verify_tables(config.output, read_manifest(config.output), ALL_TABLES)
        pipeline.prepare(replace(config, overwrite=True))
        check(config, expected)
        if not killed:
            return
    pytest.fail("no run came to its end")


def test_a_second_run_is_refused_while_the_first_works(config, monkeypatch):
    clean_part, lines = group_parts.clean_part, []

    def clean_while_another_starts(*args):
        with pytest.raises(UserError) as refusal:
            pipeline.prepare(replace(config, seed=1))
        lines.append(str(refusal.value))
        return clean_part(*args)

    monkeypatch.setattr(group_parts, "clean_part", clean_while_another_starts)
    manifest = pipeline.prepare(config)
    assert len(lines) == 4
    owner = f"in use by prepare on {os.uname().nodename} (pid {os.getpid()}"
    assert all(owner in line for line in lines)
    check(config, manifest)


@pytest.mark.parametrize(
    ("module", "stage"),
    [
        (group_parts, "clean_part"),
        (pipeline, "find_exact"),
        (pipeline, "tokenize_part"),
        (pipeline, "assemble"),
    ],
)
def test_a_run_that_lost_its_lock_stops_before_its_manifest(config, monkeypatch, module, stage):
    """The second run has another configuration and ends first; the first was only paused."""
    work, second = getattr(module, stage), []

    def pause(*args, **options):
        with monkeypatch.context() as patch:
            patch.setattr(module, stage, work)
            patch.setattr(Owner, "is_alive", lambda owner: False)
            if not second:
                second.append(pipeline.prepare(replace(config, seed=1)))
        return work(*args, **options)

    monkeypatch.setattr(module, stage, pause)
    with pytest.raises(UserError, match="another run has taken over"):
        pipeline.prepare(config)
    check(replace(config, seed=1), second[0])


def test_a_file_written_into_the_tables_on_the_way_is_refused(config, monkeypatch):
    def publish(output, work, names, publish=pipeline.Output.publish):
        publish(output, work, names)
        shutil.copy(f"{config.output}/{min(names)}", f"{config.output}/conversations/x.parquet")

    monkeypatch.setattr(pipeline.Output, "publish", publish)
    with pytest.raises(UserError, match=r"conversations/x\.parquet is not one of its files"):
        pipeline.prepare(config)
    assert not os.path.exists(f"{config.output}/manifest.json")


def test_an_output_with_files_of_the_users_own_is_refused_and_kept(config, tmp_path):
    mine = tmp_path / "out/conversations/mine.json"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(UserError, match=r"conversations/mine\.json was not written by a run"):
        pipeline.prepare(replace(config, overwrite=True))
    assert mine.read_text() == "mine"


def test_a_run_whose_conversations_have_several_samples_is_complete(config, tmp_path, capsys):
    records = [record(str(n), f"{n}, please?") for n in range(4)]
    for item in records:
        item["conversations"] *= 5
    (tmp_path / "in/long.json").write_text(json.dumps(records))
    config = replace(config, long="split", max_length=64)
    manifest = pipeline.prepare(config)
    assert manifest["samples"] > manifest["counts"]["kept"]
    assert pipeline.prepare(config) == manifest
    assert "is complete already" in capsys.readouterr().out


def test_inputs_of_the_same_size_with_other_bytes_are_another_run(config, tmp_path):
    first = pipeline.prepare(config)
    assert pipeline.prepare(config) == first
    times = (tmp_path / "in/0.json").stat()
    write_inputs(tmp_path / "in", "8")
    os.utime(tmp_path / "in/0.json", ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(UserError, match="complete run of another configuration"):
        pipeline.prepare(config)
    again = pipeline.prepare(replace(config, overwrite=True))
    assert again["digest"] != first["digest"]


def test_an_input_whose_name_is_not_utf8_is_named_in_manifest_and_report(config, tmp_path):
    name = os.fsdecode(os.fsencode(str(tmp_path)) + b"/in/\xe9.json")
    os.rename(tmp_path / "in/0.json", name)
    manifest = pipeline.prepare(replace(config, input=(name,)))
    assert manifest["config"]["input"] == [f"{tmp_path}/in/\ufffd.json"]


def test_the_lock_is_free_after_a_run_and_after_an_error(config):
    pipeline.prepare(config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "tokenize_part", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pipeline.prepare(replace(config, overwrite=True, seed=1))
    pipeline.prepare(replace(config, seed=1, resume=True))
    (claim,) = (RunDir.open(config.output)).files(LOCK_FOLDER, ".json")
    assert RunDir.open(config.output).read_json(claim) == {"released": True}


def test_a_run_on_s3_that_failed_is_resumed_and_is_the_run_of_the_same_files_on_a_disk(
    config, expected, s3, tmp_path, monkeypatch
):
    monkeypatch.setattr(run_lock, "Timing", partial(Timing, settle_s=1.0))
    for file in (tmp_path / "in").iterdir():
        s3.put_object(Bucket="bucket", Key=f"in/{file.name}", Body=file.read_bytes())
    config = replace(config, input=("s3://bucket/in",), output="s3://bucket/out")
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "assemble", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pipeline.prepare(config)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "tokenize_part", lambda *_, **__: pytest.fail("done before"))
        manifest = pipeline.prepare(replace(config, resume=True))
    verify_tables(config.output, manifest, ALL_TABLES)
    for key in ("digest", "counts", "tokens", "files"):
        assert manifest[key] == expected[key]
    assert manifest["identity"]["inputs"] == expected["identity"]["inputs"]
    keys = [o["Key"] for o in s3.list_objects_v2(Bucket="bucket", Prefix="out/")["Contents"]]
    assert not [key for key in keys if ".work" in key or ".tmp" in key or key.endswith(".beat")]

    assert pipeline.prepare(config) == manifest
    s3.put_object(Bucket="bucket", Key="in/0.json", Body=b"[]" + b" " * 100)
    with pytest.raises(UserError, match="another configuration"):
        pipeline.prepare(config)


def run_in_fork(config, start):
    """Run in this forked process; the exit status is that of the job."""
    os.read(start, 1)
    try:
        pipeline.prepare(config)
    except UserError as error:
        os._exit(2 if "in use by prepare" in str(error) else 3)
    os._exit(0)


def test_two_runs_that_start_together_while_one_is_killed_at_a_random_instant(config, expected):
    context, rng = multiprocessing.get_context("fork"), random.Random(1)
    one, two = replace(config, overwrite=True), replace(config, overwrite=True, seed=7)
    other = pipeline.prepare(replace(two, output=f"{config.output}-other"))
    assert other["digest"] != expected["digest"]
    statuses = set()
    for _ in range(10):
        # No barrier: a process that is killed before it, or in it, would keep the other there.
        start, signal_start = os.pipe()
        processes = [context.Process(target=run_in_fork, args=(c, start)) for c in (one, two)]
        for process in processes:
            process.start()
        os.write(signal_start, b"go")
        time.sleep(rng.uniform(0.0, 0.6))
        processes[0].kill()
        for process in processes:
            process.join(60)
        os.close(start)
        os.close(signal_start)
        first, second = (process.exitcode for process in processes)
        statuses.add((first, second))
        assert first in (0, 2, -9)
        assert second in (0, 2)
        if second == 0 and first != 0:
            check(two, other)
        pipeline.prepare(one)
        check(one, expected)
        assert leftovers(one) == []
    assert (-9, 0) in statuses or (-9, 2) in statuses
