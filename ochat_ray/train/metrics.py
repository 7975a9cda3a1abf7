"""Metrics of a run: metrics.jsonl and TensorBoard, and optionally W&B and MLflow.

A line is a flat dictionary with a "step": one for every optimizer step, and one with "eval_loss"
for every evaluation. A resumed run keeps the lines up to its checkpoint and removes later ones,
which it writes again; so no step is recorded twice.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from pyarrow import fs as pafs

from ochat_ray.ownership import Ownership, files_below
from ochat_ray.run_dir import RunDir
from ochat_ray.train.trackers import check_trackers, trackers

METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"
REWRITE_SECONDS = 10.0
"""Interval at which metrics.jsonl is written to a URI, where a file cannot be appended to."""

Line = dict[str, Any]


def read_metrics(run: RunDir) -> list[Line]:
    """Return the complete lines of metrics.jsonl, without one that is just being written.

    Lines that are damaged, for example after a crash of the host, are skipped.
    """
    lines = _complete_lines(run, METRICS)
    return [parsed for line in lines if (parsed := _parse(line)) is not None]


def lines_up_to(run: RunDir, name: str, step: int) -> list[str]:
    """Return the lines of a JSONL file up to a step; damaged ones are skipped."""
    lines = [(line, _parse(line)) for line in _complete_lines(run, name)]
    if damaged := sum(parsed is None for _, parsed in lines):
        print(f"{run.path(name)}: {damaged} damaged lines are skipped", file=sys.stderr)
    return [line for line, parsed in lines if parsed is not None and parsed["step"] <= step]


class Metrics:
    """Writer of a run's metrics, and its context manager.

    Args:
        run: the output directory; None, on all workers but the first, writes nothing.
        resume_step: step of the checkpoint, up to which lines are kept; None keeps none.
        token: token of the run; TensorBoard's file names end with it, which identifies them as
            written by the run.
        check: called before metrics.jsonl is written; raises if another run owns the directory.
        constants: values that are added to every line of metrics.jsonl.
        wandb: project at Weights & Biases.
        mlflow: experiment of MLflow.
        config: options of the run, for W&B and MLflow.
        sinks: other outputs of the first worker.

    Raises:
        UserError: a tracker's package is not installed.
    """

    def __init__(
        self,
        run: RunDir | None,
        *,
        resume_step: int | None = None,
        token: str = "",
        check: Callable[[], None] = lambda: None,
        constants: Mapping[str, Any] | None = None,
        wandb: str | None = None,
        mlflow: str | None = None,
        config: Mapping[str, Any] | None = None,
        sinks: Iterable[Sink] = (),
    ) -> None:
        self._constants = dict(constants or {})
        self._sinks: list[Sink] = []
        self._written: set[tuple[int, bool]] = set()
        self._file: _JsonLines | None = None
        if run is None:
            return
        check_trackers(wandb=wandb, mlflow=mlflow)
        kept = [] if resume_step is None else lines_up_to(run, METRICS, resume_step)
        self._written = {_key(json.loads(line)) for line in kept}
        self._file = _JsonLines(run, kept, check)
        self._sinks = [
            _TensorBoard(run, resume_step, token),
            *trackers(
                run,
                wandb=wandb,
                mlflow=mlflow,
                config=config or {},
                resumed=resume_step is not None,
            ),
            *sinks,
        ]

    def write(self, line: Mapping[str, Any]) -> None:
        """Write a line to all outputs, unless its step was written before."""
        if self._file is None or _key(line) in self._written:
            return
        self._written.add(_key(line))
        self._file.write({**line, **self._constants})
        values = _scalars(line)
        for sink in self._sinks:
            sink.write(int(line["step"]), values)

    def write_text(self, step: int, name: str, text: str) -> None:
        """Write a text to TensorBoard, as Markdown."""
        for sink in self._sinks:
            if isinstance(sink, _TensorBoard):
                sink.write_text(step, name, text)

    def flush(self) -> None:
        """Persist all lines; call it before a checkpoint is marked as complete."""
        if self._file is not None:
            self._file.flush()
            for sink in self._sinks:
                sink.flush()

    def close(self, *, failed: bool = False) -> None:
        """Flush, publish TensorBoard's files and close the trackers."""
        self.flush()
        sinks, self._sinks, self._file = self._sinks, [], None
        for sink in sinks:
            sink.close(failed)

    def __enter__(self) -> Metrics:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close(failed=kind is not None)


class Sink(Protocol):
    """Output of metrics besides metrics.jsonl."""

    def write(self, step: int, values: dict[str, float]) -> None: ...
    def flush(self) -> None: ...
    def close(self, failed: bool) -> None: ...


class _JsonLines:
    """Writer of metrics.jsonl: appends to a local file, and rewrites one at a URI regularly."""

    def __init__(self, run: RunDir, kept: list[str], check: Callable[[], None]) -> None:
        self._run = run
        self._check = check
        self._lines = kept
        self._appends = isinstance(run.fs, pafs.LocalFileSystem)
        self._rewrite()

    def write(self, line: Line) -> None:
        text = json.dumps(line)
        if self._appends:
            self._check()
            # Opened for each line: on a shared file system others see a write when it is closed.
            with open(self._run.path(METRICS), "ab", buffering=0) as file:
                file.write(f"{text}\n".encode())
            return
        self._lines.append(text)
        if time.monotonic() - self._written >= REWRITE_SECONDS:
            self._rewrite()

    def flush(self) -> None:
        if not self._appends:
            self._rewrite()

    def _rewrite(self) -> None:
        self._check()
        self._run.write_text(METRICS, "".join(f"{line}\n" for line in self._lines))
        self._written = time.monotonic()


class _TensorBoard:
    """Writer of event files in the output directory; at a URI they are written at the end."""

    def __init__(self, run: RunDir, resume_step: int | None, token: str) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        if resume_step is None:
            Ownership(run, "train").remove(files_below(run, TENSORBOARD))
        self._run = run
        self._local = isinstance(run.fs, pafs.LocalFileSystem)
        self._directory = run.path(TENSORBOARD) if self._local else tempfile.mkdtemp()
        purge_step = None if resume_step is None else resume_step + 1
        self._writer = SummaryWriter(
            self._directory,
            purge_step=purge_step,
            flush_secs=10,
            filename_suffix=f".{token}" if token else "",
        )

    def write(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def write_text(self, step: int, name: str, text: str) -> None:
        self._writer.add_text(name, text, step)

    def flush(self) -> None:
        self._writer.flush()

    def close(self, failed: bool) -> None:  # noqa: ARG002
        self._writer.close()
        if self._local:
            return
        for path in sorted(Path(self._directory).iterdir()):
            with path.open("rb") as source, self._run.writing(f"{TENSORBOARD}/{path.name}") as to:
                shutil.copyfileobj(source, to)
        shutil.rmtree(self._directory)


def _complete_lines(run: RunDir, name: str) -> list[str]:
    if not run.exists(name):
        return []
    with run.fs.open_input_stream(run.path(name), compression=None) as stream:
        return stream.read().decode(errors="replace").split("\n")[:-1]


def _parse(line: str) -> Line | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    valid = isinstance(value, dict) and isinstance(value.get("step"), int)
    return value if valid else None


def _key(line: Mapping[str, Any]) -> tuple[int, bool]:
    return int(line["step"]), "eval_loss" in line


def _scalars(line: Mapping[str, Any]) -> dict[str, float]:
    """Return a line's finite numbers, with names such as "train/loss" and "eval/loss"."""
    return {
        f"eval/{name[5:]}" if name.startswith("eval_") else f"train/{name}": float(value)
        for name, value in line.items()
        if name != "step" and isinstance(value, int | float) and math.isfinite(value)
    }
