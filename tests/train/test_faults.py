"""Training that is disturbed: killed workers, other numbers of workers, full disks."""

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
import ray

from ochat_ray.errors import UserError
from ochat_ray.run_dir import RunDir
from ochat_ray.train import checkpoint as checkpoints
from ochat_ray.train.config import TrainConfig
from ochat_ray.train.launch import train
from tests.processes import descendants

pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("three_cpus"),
    # The thread that kills a worker must find one.
    pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning"),
]

STEPS = 40


@pytest.fixture(scope="module")
def three_cpus():
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def configured(data, model_directory):
    def configured(output, **changes):
        return TrainConfig(
            **{
                "recipe": "demo", "data": data, "model": str(model_directory),
                "output": str(output), "num_workers": 2, "epochs": STEPS // 10,
                "sequences_per_step": 2, "max_tokens": 128, "learning_rate": 1e-3,
                "dtype": "float32", "checkpoint_every": 7,
            }
            | changes
        )  # fmt: skip

    return configured


@pytest.fixture(scope="module")
def undisturbed(configured, tmp_path_factory):
    return train(configured(tmp_path_factory.mktemp("undisturbed") / "model"))


def lines(output):
    path = Path(output, "metrics.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def kill_a_worker(output, step):
    """Send SIGKILL to one of the workers once they have done a step; the thread that waits."""

    def kill():
        while not any(m["step"] >= step for m in lines(output)):
            time.sleep(0.005)
        os.kill(descendants("RayTrainWorker")[-1].pid, signal.SIGKILL)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    return thread


def test_a_killed_worker_changes_nothing_but_the_time(configured, undisturbed, tmp_path):
    config = configured(tmp_path / "model")
    killer = kill_a_worker(config.output, 16)
    result = train(config)
    assert not killer.is_alive()
    assert result["eval_after"]["loss"] == pytest.approx(
        undisturbed["eval_after"]["loss"], abs=1e-6
    )
    steps = [m["step"] for m in lines(config.output) if "loss" in m]
    assert steps == list(range(1, STEPS + 1))  # each counted once
    names = [c.name for c in checkpoints.whole(RunDir.open(config.output))]
    assert len({name.rsplit("-", 1)[1] for name in names}) == 1  # of the second attempt alone


@pytest.fixture(scope="module")
def stopped(configured, tmp_path_factory):
    """A run of two workers that ended in its middle."""
    output = tmp_path_factory.mktemp("stopped") / "model"
    kill_a_worker(output, 16)
    with pytest.raises(Exception, match="worker"):
        train(configured(output, max_failures=0))
    assert 16 <= max(m["step"] for m in lines(output)) < STEPS
    return output


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_a_stopped_run_goes_on_with_another_number_of_workers(
    configured, undisturbed, stopped, tmp_path, num_workers
):
    output = tmp_path / "model"
    shutil.copytree(stopped, output)
    last = checkpoints.latest(RunDir.open(str(output)))
    assert last.world_size == 2
    result = train(configured(output, num_workers=num_workers, resume=True))
    tolerance = 1e-6 if num_workers == 2 else 1e-3
    expected = undisturbed["eval_after"]["loss"]
    assert result["eval_after"]["loss"] == pytest.approx(expected, abs=tolerance)
    assert result["eval_before"] == undisturbed["eval_before"]
    steps = [m for m in lines(output) if "loss" in m]
    assert [m["step"] for m in steps] == list(range(1, STEPS + 1))
    assert {m["world_size"] for m in steps if m["step"] > last.step} == {num_workers}


def test_an_unfinished_run_is_neither_lost_nor_mixed_with_another(configured, stopped, tmp_path):
    output = tmp_path / "model"
    shutil.copytree(stopped, output)
    before = checkpoints.whole(RunDir.open(str(output)))
    with pytest.raises(UserError, match=r"checkpoint at step .* give it up with --overwrite"):
        train(configured(output, learning_rate=2e-3))
    with pytest.raises(UserError, match=r"--learning-rate 0\.001, not 0.002"):
        train(configured(output, learning_rate=2e-3, resume=True))
    with pytest.raises(UserError, match="another size of a step"):
        train(configured(output, sequences_per_step=4, resume=True))
    assert checkpoints.whole(RunDir.open(str(output))) == before


def test_a_checkpoint_of_another_model_is_refused(configured, stopped, model_directory, tmp_path):
    output, other = tmp_path / "model", tmp_path / "other"
    shutil.copytree(stopped, output)
    shutil.copytree(model_directory, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    with pytest.raises(UserError, match="of another base model"):
        train(configured(output, model=str(other), resume=True))


def test_the_same_command_passes_over_a_checkpoint_that_lost_a_file(
    configured, undisturbed, stopped, tmp_path
):
    output = tmp_path / "model"
    shutil.copytree(stopped, output)
    *_, before, last = checkpoints.whole(RunDir.open(str(output)))
    shard = next((output / last.folder / "deepspeed").glob("*optim_states.pt"))
    shard.write_bytes(shard.read_bytes()[:-100])
    assert checkpoints.latest(RunDir.open(str(output))) == before
    result = train(configured(output))
    expected = undisturbed["eval_after"]["loss"]
    assert result["eval_after"]["loss"] == pytest.approx(expected, abs=1e-6)


def test_a_full_disk_is_one_clear_line_and_leaves_the_last_good_checkpoint(configured, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], check=False
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        with pytest.raises(UserError, match="no space left on the device"):
            train(configured(disk / "model", keep_checkpoints=100))
        run = RunDir.open(str(disk / "model"))
        good = checkpoints.latest(run)
        assert good is not None
        assert not run.exists("ochat.json")
        # With what is needed to go on, it does: nothing of the checkpoint was half-written.
        shutil.copytree(disk / "model", tmp_path / "model")
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    result = train(configured(tmp_path / "model", resume=True))
    assert result["step"] == STEPS
