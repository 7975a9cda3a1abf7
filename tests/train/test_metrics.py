"""metrics.jsonl and TensorBoard, on a disk and at a URI, of complete and resumed runs."""

import pytest
from pyarrow import fs as pafs

from ochat_ray.errors import UserError
from ochat_ray.ownership import Ownership
from ochat_ray.run_dir import RunDir
from ochat_ray.train import metrics as module
from ochat_ray.train.metrics import METRICS, Metrics, read_metrics

TOKEN = "1" * 32


def local(path):
    return RunDir.open(str(path))


def remote(path):
    """A file system that does not look like the local one."""
    return RunDir(pafs.SubTreeFileSystem(str(path), pafs.LocalFileSystem()), "run")


def step(number, loss=1.0):
    return {"step": number, "loss": loss, "grad_norm": 0.5}


def evaluation(number, loss=2.0):
    return {"step": number, "eval_loss": loss, "eval_end_of_turn": 0.25}


@pytest.fixture(autouse=True)
def first_event_files(monkeypatch):
    """Number event files as in a new process: of one second, TensorBoard reads the tenth first."""
    from tensorboard.summary.writer import event_file_writer as writer

    monkeypatch.setattr(writer, "_global_uid", type(writer._global_uid)(0))


def curves(directory):
    """TensorBoard's own reading: {tag: [(step, value)]}."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory))
    events.Reload()
    return {
        tag: [(e.step, pytest.approx(e.value)) for e in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


@pytest.mark.parametrize("open_run", [local, remote])
def test_every_line_is_in_the_file_and_in_tensorboard(open_run, tmp_path):
    run = open_run(tmp_path)
    with Metrics(run, constants={"total_steps": 2}) as metrics:
        metrics.write(evaluation(0))
        metrics.write(step(1))
        metrics.write(step(2, loss=0.5))
    assert read_metrics(run) == [
        {**line, "total_steps": 2} for line in (evaluation(0), step(1), step(2, loss=0.5))
    ]
    folder = tmp_path / "tensorboard" if open_run is local else tmp_path / "run/tensorboard"
    assert curves(folder) == {
        "train/loss": [(1, 1.0), (2, 0.5)],
        "train/grad_norm": [(1, 0.5), (2, 0.5)],
        "eval/loss": [(0, 2.0)],
        "eval/end_of_turn": [(0, 0.25)],
    }


@pytest.mark.parametrize("open_run", [local, remote])
def test_a_resumed_run_records_no_step_twice(open_run, tmp_path):
    run = open_run(tmp_path)
    with Metrics(run) as metrics:
        for line in (evaluation(0), step(1), step(2), evaluation(2), step(3, 9.0), step(4, 9.0)):
            metrics.write(line)
    with Metrics(run, resume_step=2) as metrics:
        assert read_metrics(run) == [evaluation(0), step(1), step(2), evaluation(2)]
        metrics.write(evaluation(2))  # written again, since the run cannot know
        metrics.write(step(3))
        metrics.write(step(4))
    assert read_metrics(run) == [evaluation(0), step(1), step(2), evaluation(2), step(3), step(4)]
    folder = tmp_path / "tensorboard" if open_run is local else tmp_path / "run/tensorboard"
    assert curves(folder)["train/loss"] == [(n, 1.0) for n in (1, 2, 3, 4)]
    assert curves(folder)["eval/loss"] == [(0, 2.0), (2, 2.0)]


def test_a_new_run_begins_with_nothing(tmp_path):
    Ownership(local(tmp_path), "train").start_work(TOKEN)
    with Metrics(local(tmp_path), token=TOKEN) as metrics:
        metrics.write(step(1, loss=9.0))
    (tmp_path / "tensorboard/mine").write_text("mine")
    with Metrics(local(tmp_path), token=TOKEN) as metrics:
        metrics.write(step(1))
    assert (tmp_path / "tensorboard/mine").read_text() == "mine"
    assert read_metrics(local(tmp_path)) == [step(1)]
    assert curves(tmp_path / "tensorboard")["train/loss"] == [(1, 1.0)]


def test_an_incomplete_line_is_not_read(tmp_path):
    run = local(tmp_path)
    with Metrics(run) as metrics:
        metrics.write(step(1))
        assert read_metrics(run) == [step(1)]  # at once
    with open(tmp_path / METRICS, "a") as file:
        file.write('{"step": 2, "loss": 1.0}')  # killed before the line's end
    assert read_metrics(run) == [step(1)]
    with Metrics(run, resume_step=5) as metrics:
        metrics.write(step(2))
    assert read_metrics(run) == [step(1), step(2)]


def test_a_damaged_line_is_skipped_and_counted(tmp_path, capsys):
    (tmp_path / METRICS).write_bytes(b'{"step": 1, "loss": 1.0}\n\0\0\0\n[]\n{"step": 2}\n')
    with Metrics(local(tmp_path), resume_step=1):
        pass
    assert read_metrics(local(tmp_path)) == [{"step": 1, "loss": 1.0}]
    assert f"{METRICS}: 2 damaged lines are skipped" in capsys.readouterr().err


def test_a_worker_of_another_run_writes_no_line(tmp_path):
    def taken_over():
        raise UserError("another run has taken over")

    with Metrics(local(tmp_path)) as metrics:
        metrics.write(step(1))
    with pytest.raises(UserError, match="taken over"):
        Metrics(local(tmp_path), resume_step=0, check=taken_over)
    assert read_metrics(local(tmp_path)) == [step(1)]


def test_at_a_uri_the_file_is_rewritten_regularly_and_when_flushed(tmp_path, monkeypatch):
    run = remote(tmp_path)
    with Metrics(run) as metrics:
        metrics.write(step(1))
        assert read_metrics(run) == []
        metrics.flush()
        assert read_metrics(run) == [step(1)]
        monkeypatch.setattr(module, "REWRITE_SECONDS", 0.0)
        metrics.write(step(2))
        assert read_metrics(run) == [step(1), step(2)]


def test_the_lines_outlast_an_error(tmp_path):
    run = remote(tmp_path)

    def fail():
        with Metrics(run) as metrics:
            metrics.write(step(1))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert read_metrics(run) == [step(1)]


def test_a_value_that_is_not_finite_is_only_in_the_file(tmp_path):
    with Metrics(local(tmp_path)) as metrics:
        metrics.write({**evaluation(0), "eval_end_of_turn": float("nan")})
    assert list(curves(tmp_path / "tensorboard")) == ["eval/loss"]


def test_other_workers_write_nothing(tmp_path):
    with Metrics(None, wandb="absent") as metrics:
        metrics.write(step(1))
        metrics.flush()
    assert list(tmp_path.iterdir()) == []
