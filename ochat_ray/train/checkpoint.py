"""Checkpoints in a model directory: completeness, choice for resuming, and retention.

    <output>/checkpoints/step-00000050-1f3a/deepspeed/...   shards of all workers
                                           /state.json      written last: marks it as complete

A name is never used twice, since Ray Train merges files that are written under the same name; its
part after the step identifies the attempt. Folders without `state.json` are ignored, and so are
folders whose `state.json` no run has recorded as its own (`ochat_ray.ownership`).
"""

from __future__ import annotations

import json
import posixpath
import re
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pyarrow import fs as pafs

from ochat_ray.command_line import flag, user_message
from ochat_ray.errors import UserError
from ochat_ray.ownership import Ownership, files_below, remove_empty_parents
from ochat_ray.run_dir import RunDir

FOLDER = "checkpoints"
RAYS_OWN = (
    f"{FOLDER}/checkpoint_manager_snapshot.json",
    f"{FOLDER}/.validate_storage_marker",
)
"""Files of Ray Train 2.60 beside the checkpoints; it would restore a run from the first one."""

_STATE = "state.json"

_WITHOUT = (
    "remove that checkpoint's folder to resume from an earlier one, or discard the run with "
    "--overwrite"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A complete checkpoint: the content of its state.json.

    `step` and `conversations` count what is trained; `eval_loss` is None if there was no
    evaluation at this step. `identity` holds everything that the result depends on; `files` are
    the shards' names and sizes in bytes.
    """

    name: str
    step: int
    conversations: int
    world_size: int
    zero_stage: int
    dtype: str
    eval_loss: float | None
    eval_before: dict[str, float]
    identity: dict[str, Any]
    files: dict[str, int]

    @property
    def folder(self) -> str:
        """Path in the run directory."""
        return f"{FOLDER}/{self.name}"

    def needs_conversion(self, *, world_size: int, zero_stage: int) -> bool:
        """Return whether it must be converted to a universal checkpoint to be loaded."""
        return (self.world_size, self.zero_stage) != (world_size, zero_stage)


def directory_name(step: int, attempt: str) -> str:
    """Return the name of a step's checkpoint in an attempt of the run."""
    return f"step-{step:08d}-{attempt}"


def shards(run: RunDir, name: str) -> dict[str, int]:
    """Return names and sizes in bytes of a checkpoint's files, except state.json."""
    root = run.path(f"{FOLDER}/{name}")
    found = run.fs.get_file_info(pafs.FileSelector(root, recursive=True, allow_not_found=True))
    files = {
        posixpath.relpath(info.path, root): info.size
        for info in found
        if info.type == pafs.FileType.File
    }
    files.pop(_STATE, None)
    return dict(sorted(files.items()))


def sizes(directory: Path) -> dict[str, int]:
    """Return names and sizes in bytes of the files in a local directory."""
    return {
        path.relative_to(directory).as_posix(): path.stat().st_size
        for path in directory.rglob("*")
        if path.is_file()
    }


def record(run: RunDir, name: str, files: Iterable[str]) -> None:
    """Record the files of a checkpoint as written by this run, before it writes the first one."""
    own = [f"{FOLDER}/{name}/{file}" for file in [*files, _STATE]]
    Ownership(run, "train").record(own)


def mark_complete(run: RunDir, checkpoint: Checkpoint) -> None:
    """Mark a checkpoint as complete, after all of its shards arrived in the run directory."""
    run.write_json(f"{checkpoint.folder}/{_STATE}", asdict(checkpoint))


def list_complete(run: RunDir) -> list[Checkpoint]:
    """Return the complete checkpoints, in the order of their steps.

    Raises:
        UserError: a state.json is damaged.
    """
    found = []
    for name in _folders(run):
        checkpoint = _read_state(run, name)
        if checkpoint is not None and checkpoint.files.items() <= shards(run, name).items():
            found.append(checkpoint)
    return sorted(found, key=lambda checkpoint: (checkpoint.step, checkpoint.name))


def _read_state(run: RunDir, name: str) -> Checkpoint | None:
    state = f"{FOLDER}/{name}/{_STATE}"
    if not run.exists(state):
        return None
    with run.fs.open_input_stream(run.path(state), compression=None) as stream:
        data = stream.read()
    try:
        checkpoint = Checkpoint(**json.loads(data))
        numbers = (checkpoint.step, checkpoint.conversations, checkpoint.world_size)
        objects = (checkpoint.files, checkpoint.identity, checkpoint.eval_before)
        if not (
            checkpoint.name == name
            and all(isinstance(number, int) for number in numbers)
            and all(isinstance(value, dict) for value in objects)
            and isinstance(checkpoint.eval_loss, float | None)
        ):
            raise TypeError("a value has the wrong type, or belongs to another checkpoint")
    except (ValueError, TypeError) as error:
        raise UserError(f"{run.path(state)} is damaged ({error}); {_WITHOUT}") from error
    return checkpoint


def check_shards(directory: Path, names: Iterable[str], where: str) -> None:
    """Verify the checksums that torch.save wrote in shards; torch.load does not.

    Args:
        directory: the checkpoint, on this host.
        names: files of the checkpoint; files that are not shards are skipped.
        where: path of the checkpoint for messages.

    Raises:
        UserError: a shard is damaged.
    """
    for name in names:
        if not name.endswith(".pt"):
            continue
        try:
            with zipfile.ZipFile(directory / name) as archive:
                damaged = archive.testzip()
        except Exception as error:
            # zipfile raises many types for damaged archives.
            if user_message(error) is not None:
                raise
            damaged = str(error)
        if damaged is not None:
            raise UserError(f"{where}/{name} is damaged ({damaged}); {_WITHOUT}")


def latest(run: RunDir) -> Checkpoint | None:
    """Return the complete checkpoint of the highest step; one that lost a file is ignored."""
    return max(list_complete(run), key=lambda checkpoint: checkpoint.step, default=None)


def best(checkpoints: Sequence[Checkpoint]) -> Checkpoint | None:
    """Return the checkpoint with the lowest held-out loss; None if none was evaluated."""
    measured = [c for c in checkpoints if c.eval_loss is not None]
    return min(measured, key=lambda c: (c.eval_loss, c.step), default=None)


def to_keep(checkpoints: list[Checkpoint], count: int) -> list[Checkpoint]:
    """Return the last `count` checkpoints and the one with the lowest held-out loss."""
    last = sorted(checkpoints, key=lambda checkpoint: checkpoint.step)[-count:]
    first = best(checkpoints)
    return last if first is None or first in last else [first, *last]


def prune(run: RunDir, count: int) -> None:
    """Remove checkpoints that are not kept or not complete; call it while no worker writes one."""
    kept = {checkpoint.name for checkpoint in to_keep(list_complete(run), count)}
    remove(run, [name for name in _folders(run) if name not in kept])


def remove_all(run: RunDir) -> None:
    """Remove every checkpoint that a run wrote here."""
    remove(run, _folders(run))


def remove(run: RunDir, names: Iterable[str]) -> None:
    """Remove checkpoints' files, and their folders unless other files lie in them."""
    ownership, gone = Ownership(run, "train"), list[str]()
    for name in names:
        folder = f"{FOLDER}/{name}"
        # state.json first: after an interrupted removal the rest does not look complete.
        ownership.remove([f"{folder}/{_STATE}"])
        ownership.remove(files_below(run, folder))
        gone += [file for file in ownership.files() if file.startswith(f"{folder}/")]
    remove_empty_parents(run, gone, FOLDER)
    ownership.forget(gone)


def check_same_run(checkpoint: Checkpoint, identity: dict[str, Any], where: str) -> None:
    """Check that a checkpoint belongs to the run that is to resume from it.

    Raises:
        UserError: model, data or options differ; the message names the first difference.
    """
    there = checkpoint.identity
    for key in [*_NAMED, *sorted(set(identity) | set(there))]:
        if there.get(key) != identity.get(key):
            what = _NAMED.get(key, f"{flag(key)} {there.get(key)}, not {identity.get(key)}")
            raise UserError(
                f"the checkpoint at step {checkpoint.step} of {where} was trained with {what}; "
                "give the same as before, choose another --output, or discard it with --overwrite"
            )


_NAMED = {
    "model": "another base model",
    "data_digest": "other data",
    "context_length": "data prepared with another --max-length",
    "deepspeed": "another --deepspeed file",
    "step": "another step size (--sequences-per-step, --tokens-per-step)",
}


def _folders(run: RunDir) -> list[str]:
    """Return names of the checkpoints that runs recorded, complete or not."""
    recorded = Ownership(run, "train").files()
    states = (re.fullmatch(rf"{FOLDER}/(step-[^/]+)/{_STATE}", file) for file in recorded)
    return sorted(match.group(1) for match in states if match)
