"""State of an output directory of prepare or train, without changing it."""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pyarrow import fs as pafs

from ochat_ray.cluster.view import Job
from ochat_ray.command_line import option_value
from ochat_ray.data.output import PLAN, Output
from ochat_ray.errors import UserError, first_line
from ochat_ray.lock_claims import LOCK_FOLDER, Owner, Timing, claim_number, is_live
from ochat_ray.recipes import DEMO, Content, default_directory
from ochat_ray.run_dir import MANIFEST, RunDir
from ochat_ray.status.deadline import call_all
from ochat_ray.train import checkpoint as checkpoints
from ochat_ray.train.metrics import METRICS, read_metrics
from ochat_ray.train.output import MODEL_MANIFEST

TIMEOUT_S = 60.0
"""Seconds after which a store or network disk that does not answer is given up. S3 is retried for
longer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """State of a run.

    `state` is complete, running, stalled, failed (not complete, and no process works on it),
    unreadable, or absent. `progress` is text, `checkpoint` the step of the last complete one.
    """

    output: str
    stage: str
    state: str
    progress: str = ""
    checkpoint: int | None = None
    host: str = ""
    idle_s: float | None = None

    @property
    def is_well(self) -> bool:
        """True if nobody has to look at the run."""
        return self.state in ("complete", "running", "absent")


def outputs_of(jobs: Sequence[Job]) -> dict[str, str]:
    """Return the stage of each output directory in the commands of jobs, the latest job's last."""
    found: dict[str, str] = {}
    for job in sorted(jobs, key=lambda job: job.started or 0.0):
        words = _words(job.entrypoint)
        stage = next((s for word in words if (s := _STAGES.get(word.rsplit("/", 1)[-1]))), None)
        if stage is None or not job.is_ours:
            continue
        recipe = option_value(words, "--recipe") or DEMO
        content: Content = "data" if stage == "prepare" else "model"
        found[option_value(words, "--output") or default_directory(recipe, content)] = stage
    return found


_STAGES = {"prepare.py": "prepare", "prepare": "prepare", "train.py": "train", "train": "train"}


def _words(command: str) -> list[str]:
    try:
        words = shlex.split(command)
    except ValueError:  # a quote that is not closed
        return command.split()
    if words[1:2] == ["-c"] and len(words) > 2:  # of a shell
        return _words(words[2])
    return words


def read_run(output: str, stage: str, *, now: float, stalled_after_s: float) -> Run:
    """Return the state of a run.

    Args:
        output: local path or URI of the output directory.
        stage: "prepare", "train", or empty if unknown.
        now: Unix time.
        stalled_after_s: seconds without progress after which a run counts as stalled.
    """
    try:
        return _read_run(RunDir.open(output), output, stage, now, stalled_after_s)
    except Exception as error:  # noqa: BLE001  a damaged file may raise any
        line = first_line(error, 300)
        if not isinstance(error, UserError | OSError):
            line = f"it cannot be read ({type(error).__name__}: {line})"
        return _unreadable(output, stage, line)


def read_runs(outputs: Mapping[str, str], *, now: float, stalled_after_s: float) -> list[Run]:
    """Return the states of runs, given the stages of their output directories.

    A directory that does not answer within `TIMEOUT_S` is unreadable.
    """
    reads = [
        partial(read_run, output, stage, now=now, stalled_after_s=stalled_after_s)
        for output, stage in outputs.items()
    ]
    runs = []
    for (output, stage), run in zip(outputs.items(), call_all(reads, TIMEOUT_S), strict=True):
        if isinstance(run, BaseException):
            raise run
        late = f"it did not answer within {TIMEOUT_S:.0f} s"
        runs.append(_unreadable(output, stage, late) if run is None else run)
    return runs


def _unreadable(output: str, stage: str, reason: str) -> Run:
    return Run(output=output, stage=stage or "unknown", state="unreadable", progress=reason)


def _read_run(run: RunDir, output: str, stage: str, now: float, stalled_after_s: float) -> Run:
    if not run.exists():
        return Run(output=output, stage=stage or "unknown", state="absent")
    owner, beat = _owner(run)
    stage = stage or (owner.stage if owner else "") or ("train" if _is_train(run) else "prepare")
    if stage == "train":
        complete, progress, checkpoint, moved = _training(run)
    else:
        complete, progress, moved = _preparation(run)
        checkpoint = None
    live = owner is not None and is_live(owner, now - (beat or 0.0), Timing())
    started = owner.started if owner else 0.0
    idle_s = max(0.0, now - max(moved or 0.0, started))
    if live:
        state = "stalled" if idle_s > stalled_after_s else "running"
    else:
        state = "complete" if complete else "failed"
    return Run(
        output=output,
        stage=stage,
        state=state,
        progress=progress,
        checkpoint=checkpoint,
        host=owner.host if owner and live else "",
        idle_s=idle_s if live else None,
    )


def _is_train(run: RunDir) -> bool:
    return any(map(run.exists, (MODEL_MANIFEST, METRICS, checkpoints.FOLDER)))


def _training(run: RunDir) -> tuple[bool, str, int | None, float | None]:
    """Return whether a training is complete, its progress, last checkpoint and last write."""
    lines = read_metrics(run)
    last = checkpoints.latest(run)
    return (
        run.exists(MODEL_MANIFEST),
        describe_steps(lines),
        last.step if last else None,
        _modified(run, METRICS),
    )


def describe_steps(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return step and losses of a run from its metrics as text."""
    if not lines:
        return "before the first step"
    text = f"step {lines[-1]['step']} of {lines[-1].get('total_steps', '?')}"
    for name, label in (("loss", "loss"), ("eval_loss", "held-out loss")):
        values = [line[name] for line in lines if isinstance(line.get(name), int | float)]
        text += f", {label} {values[-1]:.4f}" if values else ""
    return text


def _preparation(run: RunDir) -> tuple[bool, str, float | None]:
    """Return whether a run of prepare is complete, its progress and its last write."""
    if run.exists(MANIFEST):
        return True, "", _modified(run, MANIFEST)
    unfinished = Output(run).unfinished()
    if unfinished is None:
        return False, "before the first group", None
    token, plan = unfinished
    work = Output(run).work(token)
    done = {stage: work.files(f"done/{stage}", ".json") for stage in ("groups", "tokenize")}
    text = f"{len(done['groups']):,} of {plan['groups']:,} groups of files cleaned"
    text += f", {len(done['tokenize']):,} parts tokenized" if done["tokenize"] else ""
    names = [f"done/{stage}" for stage in ("groups", "exact", "minhash", "tokenize")]
    moved = [time for name in [*names, PLAN] if (time := _modified(work, name)) is not None]
    return False, text, max(moved, default=None)


def _modified(run: RunDir, name: str) -> float | None:
    """Return the time of the last write to a file, or to a file of a folder."""
    info = run.fs.get_file_info(run.path(name))
    if info.type == pafs.FileType.Directory:
        selector = pafs.FileSelector(run.path(name), allow_not_found=True)
        times = [file.mtime_ns for file in run.fs.get_file_info(selector) if file.mtime_ns]
        return max(times) / 1e9 if times else None
    return info.mtime_ns / 1e9 if info.mtime_ns else None


def _owner(run: RunDir) -> tuple[Owner | None, float | None]:
    """Return the owner of the lock, or of the last claim, and its last heartbeat as Unix time."""
    selector = pafs.FileSelector(run.path(LOCK_FOLDER), allow_not_found=True)
    files = {info.base_name: info for info in run.fs.get_file_info(selector)}
    claims = [name for name in files if re.fullmatch(r"[0-9a-f]+\.json", name)]
    if not claims:
        return None, None
    numbered = isinstance(run.fs, pafs.LocalFileSystem)
    order = claim_number if numbered else lambda name: files[name].mtime_ns or 0
    latest = max(claims, key=lambda name: order(name) or 0)
    with run.fs.open_input_stream(
        run.path(posixpath.join(LOCK_FOLDER, latest)), compression=None
    ) as stream:
        owner = Owner.parse(stream.read())  # None for one that was released
    times = [files[latest].mtime_ns or 0]
    if beat := files.get(f"{latest.removesuffix('.json')}.beat"):
        times.append(beat.mtime_ns or 0)
    return owner, max(times) / 1e9
