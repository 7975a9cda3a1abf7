"""Trackers: metrics to Weights & Biases and MLflow, sent from separate threads.

Errors and delays of a tracker do not affect training. A resumed run continues under the same id,
and no step is recorded twice.
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
"""File in the output directory with the run's ids at W&B and MLflow."""

CLOSE_SECONDS = 60.0
"""Timeout of a tracker for its last lines."""

Send = Callable[[int, dict[str, float]], Any]
Finish = Callable[[bool], Any]


def check_trackers(*, wandb: str | None, mlflow: str | None) -> None:
    """Raise a UserError if the package of a requested tracker cannot be imported."""
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
    """Return the requested trackers; `wandb` is a project and `mlflow` an experiment.

    Their packages must be installed (`check_trackers`).
    """
    if not resumed:
        Ownership(run, "train").remove([TRACKED])
    found = []
    if wandb is not None:
        found.append(Tracker("wandb", lambda: _wandb(wandb, run, config)))
    if mlflow is not None:
        found.append(Tracker("mlflow", lambda: _mlflow(mlflow, run, config)))
    return found


class Tracker:
    """Thread that sends values to a service, and warns once if that fails.

    `connect` returns two functions: one sends a step's values, the other ends the session and gets
    whether the run failed.
    """

    def __init__(self, name: str, connect: Callable[[], tuple[Send, Finish]]) -> None:
        self._name = name
        self._connect = connect
        self._queue: queue.SimpleQueue[tuple[int, dict[str, float]] | bool] = queue.SimpleQueue()
        self._warned = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def write(self, step: int, values: dict[str, float]) -> None:
        """Queue a step's values without waiting."""
        self._queue.put((step, values))

    def flush(self) -> None:
        """Do nothing: a checkpoint does not wait for a tracker."""

    def close(self, failed: bool) -> None:
        """Send the last values, waiting at most `CLOSE_SECONDS`."""
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
        except Exception as error:  # noqa: BLE001 - training continues after any error
            self._warn(f"{type(error).__name__}: {error}")

    def _warn(self, problem: str) -> None:
        if not self._warned:
            self._warned = True
            print(
                f"{self._name}: {problem}; training continues, metrics.jsonl has every line",
                file=sys.stderr,
                flush=True,
            )


def _wandb(project: str, run: RunDir, config: Mapping[str, Any]) -> tuple[Send, Finish]:
    """Start or resume a W&B run; W&B ignores steps that it already has."""
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
    """Start or resume an MLflow run; skip its existing steps, which MLflow would record twice."""
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
    return importlib.import_module(package)  # only imported if requested


def _known(run: RunDir) -> dict[str, str]:
    return run.read_json(TRACKED) or {}


def _remember(run: RunDir, tracker: str, id: str) -> None:
    with _remembering:
        run.write_json(TRACKED, _known(run) | {tracker: id})


_remembering = threading.Lock()
