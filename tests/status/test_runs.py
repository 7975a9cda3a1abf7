"""State of run directories, as runs leave them."""

import json
import os
import time

import pytest

from ochat_ray.cluster.view import Job
from ochat_ray.data.output import Output
from ochat_ray.errors import UserError
from ochat_ray.lock_claims import Timing
from ochat_ray.run_dir import RunDir
from ochat_ray.run_lock import hold
from ochat_ray.status import runs
from ochat_ray.status.config import StatusConfig
from ochat_ray.status.runs import outputs_of, read_run
from ochat_ray.train import checkpoint as checkpoints
from ochat_ray.train.checkpoint import Checkpoint


@pytest.fixture
def run(tmp_path):
    return RunDir.open(str(tmp_path))


def state_of(run, stage="train", *, later_s=0.0):
    return read_run(run.root, stage, now=time.time() + later_s, stalled_after_s=600)


def write_steps(run, *steps):
    lines = [{"step": step, "total_steps": 9, "loss": 1.5} for step in steps]
    lines.append({"step": steps[-1], "total_steps": 9, "eval_loss": 1.25})
    run.write_text("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))


def write_checkpoint(run, step):
    name = checkpoints.directory_name(step, "abcd1234")
    checkpoints.record(run, name, [])
    checkpoints.mark_complete(
        run,
        Checkpoint(
            name=name, step=step, conversations=1, world_size=1, zero_stage=3, dtype="x",
            eval_loss=None, eval_before={}, identity={}, files={},
        ),
    )  # fmt: skip


def test_a_directory_that_does_not_exist_is_absent(run):
    assert read_run(run.path("new"), "train", now=0.0, stalled_after_s=1.0).state == "absent"


def test_a_running_training_has_steps_a_checkpoint_and_a_host(run):
    with hold(run, "train"):
        assert state_of(run).progress == "before the first step"
        write_steps(run, 1, 2, 3)
        write_checkpoint(run, 2)
        found = state_of(run)
    assert (found.stage, found.state, found.checkpoint) == ("train", "running", 2)
    assert found.progress == "step 3 of 9, loss 1.5000, held-out loss 1.2500"
    assert found.host == os.uname().nodename


def test_a_run_without_progress_for_too_long_has_stalled(run):
    with hold(run, "train"):
        write_steps(run, 1)
        assert state_of(run, later_s=590).state == "running"
        assert state_of(run, later_s=620).state == "stalled"


def test_a_killed_or_ended_run_that_is_not_complete_has_failed(run):
    with hold(run, "train"):
        write_steps(run, 1)
    assert state_of(run).state == "failed"


def test_a_complete_training_is_complete(run):
    with hold(run, "train"):
        write_steps(run, 9)
        run.write_json("ochat.json", {})
    assert state_of(run).state == "complete"
    assert state_of(run, "").stage == "train"


def test_prepare_counts_its_groups(run):
    with hold(run, "prepare"):
        work = Output(run).start_work("0" * 32)
        work.write_json("plan.json", {"groups": 1200})
        for number in range(3):
            work.write_json(f"done/groups/{number:06d}.json", {})
        found = state_of(run, "")
        assert (found.stage, found.state) == ("prepare", "running")
        assert found.progress == "3 of 1,200 groups of files cleaned"
        work.write_json("done/tokenize/000000.json", {})
        assert state_of(run, "").progress.endswith(", 1 parts tokenized")
    run.write_json("manifest.json", {})
    assert state_of(run, "").state == "complete"


def test_a_damaged_checkpoint_is_unreadable_in_one_line(run):
    write_checkpoint(run, 2)
    (folder,) = [f"checkpoints/{name}" for name in os.listdir(run.path("checkpoints"))]
    run.write_text(f"{folder}/state.json", "{")
    found = state_of(run)
    assert found.state == "unreadable"
    assert "state.json is damaged" in found.progress


@pytest.mark.parametrize("plan", [{}, [], {"groups": "x"}, {"groups": None}])
def test_a_damaged_plan_is_unreadable_in_one_line(run, plan):
    with hold(run, "prepare"):
        Output(run).start_work("0" * 32).write_json("plan.json", plan)
        found = state_of(run, "prepare")
    assert found.state == "unreadable"
    assert found.progress.startswith("it cannot be read (")


@pytest.mark.parametrize("line", ['{"step": 1, "loss": 1' + "0" * 400 + "}", "[" * 100_000])
def test_a_damaged_line_of_metrics_is_unreadable_in_one_line(run, line):
    run.write_text("metrics.jsonl", f"{line}\n")
    found = state_of(run)
    assert found.state == "unreadable"
    assert found.progress.startswith("it cannot be read (")


def test_a_directory_that_does_not_answer_is_unreadable_and_the_others_are_read(run, monkeypatch):
    monkeypatch.setattr(runs, "TIMEOUT_S", 1.0)
    for name in ("late", "well"):
        os.mkdir(run.path(name))
    os.mkfifo(run.path("late/metrics.jsonl"))  # a read waits for a writer, as for a dead NFS server
    outputs = {run.path("late"): "train", run.path("well"): "train"}
    late, well = runs.read_runs(outputs, now=time.time(), stalled_after_s=600)
    assert (late.state, late.progress) == ("unreadable", "it did not answer within 1 s")
    assert well.state == "failed"


def test_a_training_on_a_store_is_read_as_well(s3):
    run, timing = RunDir.open("s3://bucket/run"), Timing(settle_s=0.2)
    with hold(run, "train", timing):
        write_steps(run, 4)
        found = read_run("s3://bucket/run", "", now=time.time(), stalled_after_s=600)
    assert (found.stage, found.state) == ("train", "running")
    assert found.progress.startswith("step 4 of 9")


def jobs(*commands):
    return [
        Job(id=str(n), status="RUNNING", entrypoint=command, started=float(n))
        for n, command in enumerate(commands)
    ]


def test_outputs_are_those_of_the_commands():
    assert outputs_of(
        jobs(
            "python jobs/prepare.py",
            "python jobs/train.py --recipe openchat",
            "ochat-ray train --recipe=chat --output='/shared/my model'",
            "python jobs/prepare.py --input a --output s3://b/data",
            "bash -c 'cd /x && python jobs/train.py --output \"/shared/by shell\"'",
            "serve run ochat_ray.serve:app",
            "python train.py --output /other",
            "python jobs/evaluate.py --output /other",
        )
    ) == {
        "runs/demo/data": "prepare",
        "runs/openchat/model": "train",
        "/shared/my model": "train",
        "s3://b/data": "prepare",
        "/shared/by shell": "train",
    }


@pytest.mark.parametrize("price", ["train", "=3", "train=", "train=x", "train=-1", "train=nan"])
def test_a_price_that_is_none_is_refused(price):
    with pytest.raises(UserError, match=r"is not TYPE=PRICE"):
        StatusConfig(price=(price,)).prices()


def test_prices_are_per_node_type():
    config = StatusConfig(price=("train=27.4", "head=0"))
    assert config.prices() == {"train": 27.4, "head": 0.0}
    with pytest.raises(UserError, match="--stalled-after must be a positive number"):
        StatusConfig(stalled_after=0).prices()
