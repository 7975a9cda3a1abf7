"""W&B and MLflow: sent values, failures that do not end a run, and the real packages offline."""

import sys
import threading
from types import ModuleType, SimpleNamespace

import pytest

from ochat_ray.errors import UserError
from ochat_ray.run_dir import RunDir
from ochat_ray.train import trackers
from ochat_ray.train.metrics import Metrics, read_metrics
from ochat_ray.train.trackers import check_trackers

LINES = [
    {"step": 0, "eval_loss": 2.0, "eval_end_of_turn": 0.5},
    {"step": 1, "loss": 1.5},
    {"step": 2, "loss": 1.0},
]


def train(directory, lines=LINES, **options):
    run = RunDir.open(str(directory))
    with Metrics(run, config={"seed": 1}, **options) as metrics:
        for line in lines:
            metrics.write(line)
    return run


@pytest.fixture
def wandb(monkeypatch):
    module = ModuleType("wandb")
    module.calls = []

    def init(**options):
        module.calls.append(("init", options))
        return SimpleNamespace(
            id=options["id"] or "w1",
            log=lambda values, step: module.calls.append((step, values)),
            finish=lambda exit_code: module.calls.append(("finish", exit_code)),
        )

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


@pytest.fixture
def mlflow(monkeypatch):
    module = ModuleType("mlflow")
    module.points, module.status = [], []  # (name, step, value)

    class MlflowClient:
        def get_experiment_by_name(self, name):
            return None

        def create_experiment(self, name):
            return f"experiment {name}"

        def create_run(self, experiment):
            module.status.append(("created in", experiment))
            return SimpleNamespace(info=SimpleNamespace(run_id="m1"))

        def log_param(self, run, key, value):
            module.status.append((key, value))

        def update_run(self, run, status):
            module.status.append((run, status))

        def get_run(self, run):
            metrics = {name: value for name, _, value in module.points}
            return SimpleNamespace(data=SimpleNamespace(metrics=metrics))

        def get_metric_history(self, run, key):
            return [SimpleNamespace(step=step) for name, step, _ in module.points if name == key]

        def set_terminated(self, run, status):
            module.status.append((run, status))

    module.MlflowClient = MlflowClient
    module.log_metrics = lambda values, step, run_id: module.points.extend(
        (name, step, value) for name, value in values.items()
    )
    monkeypatch.setitem(sys.modules, "mlflow", module)
    return module


def test_values_sent_to_wandb(wandb, tmp_path):
    train(tmp_path, wandb="chat")
    assert wandb.calls == [
        (
            "init",
            {
                "project": "chat",
                "id": None,
                "resume": "allow",
                "config": {"seed": 1},
                "dir": str(tmp_path),
            },
        ),
        (0, {"eval/loss": 2.0, "eval/end_of_turn": 0.5}),
        (1, {"train/loss": 1.5}),
        (2, {"train/loss": 1.0}),
        ("finish", 0),
    ]
    wandb.calls.clear()
    train(tmp_path, [LINES[2]], wandb="chat", resume_step=1)
    assert wandb.calls[0][1]["id"] == "w1"
    assert wandb.calls[1:-1] == [(2, {"train/loss": 1.0})]


def test_values_sent_to_mlflow_are_not_sent_twice(mlflow, tmp_path):
    train(tmp_path, mlflow="chat")
    points = [
        ("eval/loss", 0, 2.0),
        ("eval/end_of_turn", 0, 0.5),
        ("train/loss", 1, 1.5),
        ("train/loss", 2, 1.0),
    ]
    assert mlflow.points == points
    assert mlflow.status == [
        ("created in", "experiment chat"),
        ("seed", 1),
        ("m1", "FINISHED"),
    ]
    mlflow.status.clear()
    train(tmp_path, [LINES[2], {"step": 3, "loss": 0.5}], mlflow="chat", resume_step=1)
    assert mlflow.points == [*points, ("train/loss", 3, 0.5)]
    assert mlflow.status == [("m1", "RUNNING"), ("m1", "FINISHED")]


def test_a_failed_run_is_marked_as_failed(wandb, mlflow, tmp_path):
    def fail():
        with Metrics(RunDir.open(str(tmp_path)), wandb="a", mlflow="b"):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert wandb.calls[-1] == ("finish", 1)
    assert mlflow.status[-1] == ("m1", "FAILED")


def test_a_missing_package_is_one_clear_line(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"--wandb needs .*: pip install wandb"):
        check_trackers(wandb="chat", mlflow=None)
    with pytest.raises(UserError, match="pip install wandb"):
        train(tmp_path, wandb="chat")
    assert list(tmp_path.iterdir()) == []


def test_an_outage_costs_one_warning(wandb, tmp_path, capsys):
    def log(values, step):
        raise ConnectionError("no route to host")

    wandb.init = lambda **options: SimpleNamespace(id="w1", log=log, finish=lambda exit_code: None)
    run = train(tmp_path, wandb="chat")
    assert read_metrics(run) == LINES
    assert capsys.readouterr().err == (
        "wandb: ConnectionError: no route to host; training continues, "
        "metrics.jsonl has every line\n"
    )


def test_a_tracker_that_is_down_at_the_start_is_not_retried(wandb, tmp_path, capsys):
    def init(**options):
        raise TimeoutError("W&B does not answer")

    wandb.init = init
    assert read_metrics(train(tmp_path, wandb="chat")) == LINES
    assert capsys.readouterr().err.count("W&B does not answer") == 1


def test_a_tracker_that_hangs_is_not_waited_for(wandb, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(trackers, "CLOSE_SECONDS", 0.05)
    release = threading.Event()
    wandb.init = lambda **options: release.wait()
    assert read_metrics(train(tmp_path, wandb="chat")) == LINES
    assert "did not take the last values" in capsys.readouterr().err
    release.set()


def test_the_real_mlflow(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "store").as_uri())
    train(tmp_path / "run", mlflow="chat")
    train(tmp_path / "run", [LINES[2], {"step": 3, "loss": 0.5}], mlflow="chat", resume_step=1)
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("chat").experiment_id
    [run] = client.search_runs([experiment])
    assert run.info.status == "FINISHED"
    assert run.data.params == {"seed": "1"}
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [(1, 1.5), (2, 1.0), (3, 0.5)]


def test_the_real_wandb_offline(tmp_path, monkeypatch, capsys):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    train(tmp_path, wandb="chat")
    [record] = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    assert b"train/loss" in record.read_bytes()
    assert "training continues" not in capsys.readouterr().err
