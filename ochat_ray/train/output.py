"""Output directory of train: recorded files, ownership checks and removal of an earlier run."""

from __future__ import annotations

import re
from typing import Any

from pyarrow import fs as pafs

from ochat_ray.errors import UserError
from ochat_ray.ownership import Ownership, files_below, final_name, top_entries
from ochat_ray.run_dir import RunDir
from ochat_ray.train import checkpoint as checkpoints
from ochat_ray.train.checkpoint import Checkpoint
from ochat_ray.train.metrics import METRICS, TENSORBOARD
from ochat_ray.train.samples import SAMPLES
from ochat_ray.train.trackers import TRACKED

MODEL_MANIFEST = "ochat.json"
PLOT = "loss.png"

_OF_THE_RUN = (METRICS, PLOT, SAMPLES, TRACKED, *checkpoints.RAYS_OWN)
"""Files that are recorded at the start; those of the model are recorded at the export."""

_KEPT_ON_RESUME = (METRICS, SAMPLES, TRACKED)
_FOLDERS = (checkpoints.FOLDER, TENSORBOARD, TRACKED.split("/")[0])
_MODEL_SUFFIXES = (".safetensors", ".bin", ".json", ".jinja", ".model")
_MODEL_NAMES = ("merges.txt", "vocab.txt")


def output_of(uri: str) -> Ownership:
    """Return the record of the files that trainings wrote in an output directory."""
    return Ownership(RunDir.open(uri), "train")


def check_output_dir(output: Ownership) -> None:
    """Check that a training would not overwrite files that no training wrote.

    Raises:
        UserError: it would; the message names the first file.
    """
    entries = list(top_entries(output.run))
    for name, is_folder in entries:
        if name in _FOLDERS and not (is_folder or _leads_to_folder(output.run, name)):
            raise UserError(
                f"{output.run.path(name)} is a file, and train writes a folder of this name; "
                "choose another --output, or remove it"
            )
    names = [name for name, _ in entries if _is_place(final_name(name))]
    if not output.is_recorded() and _is_of_earlier_version(output):
        raise UserError(
            f"{output.run.root} holds a training of an earlier version of ochat-ray, which did not "
            "record its files, so it is not replaced (serve and --model can read it); choose "
            "another --output, or remove that directory"
        )
    output.check([*names, *_OF_THE_RUN])


def clear(output: Ownership, resumed: Checkpoint | None) -> None:
    """Delete the files of earlier trainings, except those from which this one resumes.

    The model's manifest is deleted first: without it the rest is not complete.
    """
    output.remove([MODEL_MANIFEST])
    kept = () if resumed is None else _KEPT_ON_RESUME
    present = [name for name, _ in top_entries(output.run)]
    names = [n for n in (*present, MODEL_MANIFEST, *_OF_THE_RUN) if final_name(n) not in kept]
    output.remove(names)
    output.forget(final_name(name) for name in names)
    if resumed is None:
        checkpoints.remove_all(output.run)
        output.remove(files_below(output.run, TENSORBOARD))
    output.clear_work()


def record_start(output: Ownership, token: str, *, trackers: bool, samples: bool = False) -> RunDir:
    """Record the files that a run writes from its start, and return its work folder."""
    unused = {TRACKED: not trackers, SAMPLES: not samples}
    output.record(name for name in _OF_THE_RUN if not unused.get(name))
    return output.start_work(token)


def record_model(output: Ownership, names: list[str]) -> None:
    """Record the files of an exported model, before the first of them is written.

    Raises:
        UserError: there is a file of such a name that no training wrote.
    """
    output.check([*names, MODEL_MANIFEST])
    output.record([*names, MODEL_MANIFEST])


def read_model_manifest(output: Ownership) -> dict[str, Any] | None:
    """Return the content of ochat.json, or None if no training is complete."""
    try:
        found = output.run.read_json(MODEL_MANIFEST)
    except UserError:  # not JSON: no run is complete
        return None
    return found if isinstance(found, dict) else None


def _is_of_earlier_version(output: Ownership) -> bool:
    if "identity" in (read_model_manifest(output) or {}):
        return True
    states = re.compile(rf"{checkpoints.FOLDER}/step-\d{{8}}-[0-9a-f]{{8}}/state\.json")
    return any(map(states.fullmatch, files_below(output.run, checkpoints.FOLDER)))


def _is_place(name: str) -> bool:
    """Return whether train writes files of this name, or programs load them with a model."""
    return name in (*_OF_THE_RUN, *_MODEL_NAMES) or name.endswith(_MODEL_SUFFIXES)


def _leads_to_folder(run: RunDir, name: str) -> bool:
    return run.fs.get_file_info(run.path(name)).type == pafs.FileType.Directory  # through a link
