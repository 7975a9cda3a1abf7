"""Weights & Biases and MLflow, told from threads of their own.

Whatever a tracker raises and however long it takes, training goes on. A resumed run goes on under
the same id, and neither tracker gets a step a second time.
"""

from __future__ import annotations

import importlib
import queue
import sys
import threading
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from pyarrow import fs as pafs

from ochat_ray.errors import UserError
from ochat_ray.ownership import Ownership
from ochat_ray.run_dir import RunDir

TRACKED = "trackers/runs.json"
"""The ids of a run at W&B and MLflow, in its output directory."""

CLOSE_SECONDS = 60.0
"""How long a tracker may take for its last lines."""

Send = Callable[[int, dict[str, float]], Any]
Finish = Callable[[bool], Any]


def check_trackers(*, wandb: str | None, mlflow: str | None) -> None:
    """Raise a UserError where a tracker is asked for whose package cannot be imported."""
    for package, asked in (("wandb", wandb), ("mlflow", mlflow)):
        if asked is not None:
            try:
                importlib.import_module(package)
            except ImportError as error:
                raise UserError(
                    f"--{package} needs a package that is not installed: pip install {package}"
                ) from error


def trackers(
    run: RunDir,
    *,
    wandb: str | None,
    mlflow: str | None,
    config: Mapping[str, Any],
    resumed: bool,
) -> list[Tracker]:
    """The trackers that are asked for, by project and experiment; their packages are there."""
    if not resumed:
        Ownership(run, "train").remove([TRACKED])
    found = []
    if wandb is not None:
        found.append(Tracker("wandb", lambda: _wandb(wandb, run, config)))
    if mlflow is not None:
        found.append(Tracker("mlflow", lambda: _mlflow(mlflow, run, config)))
    return found


class Tracker:
    """Sends values to a service from a thread, and warns once when that fails.

    `connect` returns what sends a step's values and what says goodbye, told whether the run failed.
    """

    def __init__(self, name: str, connect: Callable[[], tuple[Send, Finish]]) -> None:
        self._name = name
        self._connect = connect
        self._queue: queue.SimpleQueue[tuple[int, dict[str, float]] | bool] = queue.SimpleQueue()
        self._warned = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def write(self, step: int, values: dict[str, float]) -> None:
        """Hand over a step's values; returns at once."""
        self._queue.put((step, values))

    def flush(self) -> None:
        """Nothing: a checkpoint does not wait for a tracker."""

    def close(self, failed: bool) -> None:
        """Wait for the last values, but not for ever."""
        self._queue.put(failed)
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            self._warn(f"did not take the last values within {CLOSE_SECONDS:.0f} s")

    def _work(self) -> None:
        session = self._try(self._connect)
        while not isinstance(item := self._queue.get(), bool):
            if session:
                self._try(session[0], *item)
        if session:
            self._try(session[1], item)

    def _try(self, call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except Exception as error:  # noqa: BLE001 - whatever it raises, training goes on
            self._warn(f"{type(error).__name__}: {error}")

    def _warn(self, problem: str) -> None:
        if not self._warned:
            self._warned = True
            print(
                f"{self._name}: {problem}; training goes on, metrics.jsonl has every line",
                file=sys.stderr,
                flush=True,
            )


def _wandb(project: str, run: RunDir, config: Mapping[str, Any]) -> tuple[Send, Finish]:
    """A W&B run; steps that it has already it leaves out by itself."""
    session = _module("wandb").init(
        project=project,
        id=_known(run).get("wandb"),
        resume="allow",
        config=dict(config),
        dir=run.root if isinstance(run.fs, pafs.LocalFileSystem) else None,
    )
    _remember(run, "wandb", session.id)
    return (
        lambda step, values: session.log(values, step=step),
        lambda failed: session.finish(exit_code=int(failed)),
    )


def _mlflow(experiment: str, run: RunDir, config: Mapping[str, Any]) -> tuple[Send, Finish]:
    """An MLflow run; it would keep a second value of a step, so what it has is not sent."""
    mlflow = _module("mlflow")
    client = mlflow.MlflowClient()
    id, last = _known(run).get("mlflow"), dict[str, int]()
    if id is None:
        found = client.get_experiment_by_name(experiment)
        home = found.experiment_id if found else client.create_experiment(experiment)
        id = client.create_run(home).info.run_id
        _remember(run, "mlflow", id)
        for key, value in config.items():
            client.log_param(id, key, value)
    else:
        client.update_run(id, status="RUNNING")
        for name in client.get_run(id).data.metrics:
            last[name] = max(point.step for point in client.get_metric_history(id, name))

    def send(step: int, values: dict[str, float]) -> None:
        new = {name: value for name, value in values.items() if step > last.get(name, -1)}
        if new:
            mlflow.log_metrics(new, step=step, run_id=id)

    return send, lambda failed: client.set_terminated(id, "FAILED" if failed else "FINISHED")


def _module(package: str) -> ModuleType:
    return importlib.import_module(package)  # one that is asked for and else never imported


def _known(run: RunDir) -> dict[str, str]:
    return run.read_json(TRACKED) or {}


def _remember(run: RunDir, tracker: str, id: str) -> None:
    with _remembering:
        run.write_json(TRACKED, _known(run) | {tracker: id})


_remembering = threading.Lock()
