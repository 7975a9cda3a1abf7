"""Where a run's metrics go: metrics.jsonl and TensorBoard always, W&B and MLflow when asked.

A line is a flat dictionary with its "step": one for every optimizer step, and one with "eval_loss"
for every evaluation. A resumed run keeps the lines up to its checkpoint and drops the later ones,
which it writes again; so no step is counted twice.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
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
"""How often metrics.jsonl is written behind a URI, where a file cannot grow."""

Line = dict[str, Any]


def read_metrics(run: RunDir) -> list[Line]:
    """The whole lines of metrics.jsonl; one that is just being written is not there yet.

    Lines that are not what training writes, as after a crash of the host, are left out.
    """
    lines = _whole_lines(run, METRICS)
    return [parsed for line in lines if (parsed := _parse(line)) is not None]


def lines_up_to(run: RunDir, name: str, step: int) -> list[str]:
    """Return the lines of a file of JSON lines up to a step; damaged ones are left out."""
    lines = [(line, _parse(line)) for line in _whole_lines(run, name)]
    if damaged := sum(parsed is None for _, parsed in lines):
        print(f"{run.path(name)}: {damaged} damaged lines are left out", file=sys.stderr)
    return [line for line, parsed in lines if parsed is not None and parsed["step"] <= step]


class Metrics:
    """Writes a run's metrics; a context manager. Without a `run`, on all workers but one, nothing.

    Args:
        run: the output directory.
        resume_step: the checkpoint's step, of which and before which lines are kept; None starts
            anew.
        token: the run's, in which the names of TensorBoard's files end, so that they are known as
            its own.
        check: called before metrics.jsonl is written; raises where the directory is another run's.
        constants: is added to every line of metrics.jsonl.
        wandb: project at Weights & Biases.
        mlflow: experiment of MLflow.
        config: the run's options, for W&B and MLflow.

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
    ) -> None:
        self._constants = dict(constants or {})
        self._sinks: list[_Sink] = []
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
        ]

    def write(self, line: Mapping[str, Any]) -> None:
        """Write one line everywhere; what is there already is not written again."""
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
        """Make the lines so far outlast this process; call it before a checkpoint counts."""
        if self._file is not None:
            self._file.flush()
            for sink in self._sinks:
                sink.flush()

    def close(self, *, failed: bool = False) -> None:
        """Flush, publish TensorBoard's files and take leave of the trackers."""
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


class _Sink(Protocol):
    def write(self, step: int, values: dict[str, float]) -> None: ...
    def flush(self) -> None: ...
    def close(self, failed: bool) -> None: ...


class _JsonLines:
    """metrics.jsonl: a local file grows by whole lines, another is rewritten now and then."""

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
            # Opened for each line: on a shared file system closing is what others see.
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
    """Event files in the output directory; behind a URI they arrive there at the end."""

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


def _whole_lines(run: RunDir, name: str) -> list[str]:
    if not run.exists(name):
        return []
    with run.fs.open_input_stream(run.path(name), compression=None) as stream:
        return stream.read().decode(errors="replace").split("\n")[:-1]


def _parse(line: str) -> Line | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    whole = isinstance(value, dict) and isinstance(value.get("step"), int)
    return value if whole else None


def _key(line: Mapping[str, Any]) -> tuple[int, bool]:
    return int(line["step"]), "eval_loss" in line


def _scalars(line: Mapping[str, Any]) -> dict[str, float]:
    """The line's finite numbers, as "train/loss" and "eval/loss"."""
    return {
        f"eval/{name[5:]}" if name.startswith("eval_") else f"train/{name}": float(value)
        for name, value in line.items()
        if name != "step" and isinstance(value, int | float) and math.isfinite(value)
    }
