"""Training with faults: killed workers, another number of workers, full disks."""

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
import ray

from ochat_ray.errors import JobFailedError, UserError
from ochat_ray.run_dir import RunDir
from ochat_ray.train import checkpoint as checkpoints
from ochat_ray.train.launch import train
from tests.train.runs import STEPS, kill_a_worker, metrics_of, steps_of

pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("local_ray"),
    # The thread that kills a worker must find one.
    pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning"),
]


@pytest.fixture(scope="module")
def stopped(shared_ray, configured, tmp_path_factory):
    """A run of two workers of which one was killed in the middle, without a retry."""
    shared_ray()
    output = tmp_path_factory.mktemp("stopped") / "model"
    killer = kill_a_worker(lambda: any(m["step"] >= 16 for m in metrics_of(output)))
    with pytest.raises(JobFailedError, match=r"--max-failures 0 times.* run it again"):
        train(configured(output, max_failures=0))
    assert not killer.is_alive()
    assert 16 <= max(m["step"] for m in metrics_of(output)) < STEPS
    return output


def test_a_run_resumes_with_one_worker_and_skips_a_checkpoint_that_lost_a_file(
    configured, undisturbed, stopped, tmp_path
):
    output = tmp_path / "model"
    shutil.copytree(stopped, output)
    *_, before, last = checkpoints.list_complete(RunDir.open(str(output)))
    shard = next((output / last.folder / "deepspeed").glob("*optim_states.pt"))
    shard.write_bytes(shard.read_bytes()[:-100])
    assert checkpoints.latest(RunDir.open(str(output))) == before
    result = train(configured(output, num_workers=1, resume=True))
    config, expected = undisturbed
    steps = steps_of(metrics_of(output))
    assert [m["step"] for m in steps] == list(range(1, STEPS + 1))
    assert {m["world_size"] for m in steps if m["step"] > before.step} == {1}
    assert result["eval_before"] == expected["eval_before"]
    losses = [m["loss"] for m in steps_of(metrics_of(config.output))]
    assert [m["loss"] for m in steps] == pytest.approx(losses, abs=1e-3)
    assert result["eval_after"]["loss"] == pytest.approx(expected["eval_after"]["loss"], abs=1e-3)


def test_an_unfinished_run_is_neither_lost_nor_mixed_with_another(configured, stopped, tmp_path):
    output = tmp_path / "model"
    shutil.copytree(stopped, output)
    before = checkpoints.list_complete(RunDir.open(str(output)))
    with pytest.raises(UserError, match=r"--learning-rate; continue it with --from-checkpoint"):
        train(configured(output, learning_rate=2e-3))
    with pytest.raises(UserError, match=r"checkpoint at step .* discard it with --overwrite"):
        train(configured(output, weight_decay=0.1))
    with pytest.raises(UserError, match=r"--weight-decay 0\.0, not 0.1"):
        train(configured(output, weight_decay=0.1, resume=True))
    with pytest.raises(UserError, match="another step size"):
        train(configured(output, sequences_per_step=4, resume=True))
    assert checkpoints.list_complete(RunDir.open(str(output))) == before


def test_a_checkpoint_of_another_model_is_rejected(configured, stopped, model_directory, tmp_path):
    output, other = tmp_path / "model", tmp_path / "other"
    shutil.copytree(stopped, output)
    shutil.copytree(model_directory, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    with pytest.raises(UserError, match="with another base model"):
        train(configured(output, model=str(other), resume=True))


def test_a_full_disk_is_one_clear_line_and_earlier_checkpoints_are_kept(configured, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], check=False
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        with pytest.raises(UserError, match="no space left on the device"):
            train(
                configured(disk / "model", keep_checkpoints=100, checkpoint_every=2, num_workers=1)
            )
        run = RunDir.open(str(disk / "model"))
        *_, last = checkpoints.list_complete(run)
        assert checkpoints.latest(run) == last
        assert not run.exists("ochat.json")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def break_the_second_step():
    """Have a worker's second step fail as a bug does, and count the workers' attempts."""
    from ochat_ray.train.engine import Engine

    step, calls = Engine.step, []

    def broken(engine, *args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            Path(os.environ["ATTEMPTS"], str(os.getpid())).touch()
            return len(3)
        return step(engine, *args, **kwargs)

    Engine.step = broken


@pytest.fixture
def attempts(shared_ray):
    """Folder with a file for each worker process whose second step failed."""
    ray.shutdown()
    with tempfile.TemporaryDirectory() as folder:
        shared_ray(
            runtime_env={
                "worker_process_setup_hook": break_the_second_step,
                "env_vars": {"ATTEMPTS": folder},
            }
        )
        yield Path(folder)
        ray.shutdown()


def test_a_bug_is_not_retried_and_its_traceback_is_shown_once(configured, attempts, tmp_path):
    with pytest.raises(JobFailedError) as ended:
        train(configured(tmp_path / "model", num_workers=1))
    assert str(ended.value).startswith("TypeError in step 2: object of type 'int' has no len()")
    assert "\n" not in str(ended.value)
    assert ended.value.detail.count("Traceback") == 1
    assert "site-packages/ray/" not in ended.value.detail
    assert len(list(attempts.iterdir())) == 1
    assert not list((tmp_path / "model").glob(".work-*"))
