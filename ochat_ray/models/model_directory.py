"""Resolve a model's path, hub name or URI to a directory on this host."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
from fnmatch import fnmatch
from pathlib import Path

import platformdirs
from pyarrow import fs as pafs

from ochat_ray.errors import UserError, one_line
from ochat_ray.run_dir import open_location

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
"""File name suffixes of model weights."""

SAFETENSORS = "*.safetensors"
"""Pattern of the weights that are served."""


_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_hub_name(model: str) -> bool:
    """Return whether a model is the name of a Hub repository, and not a path that exists."""
    return bool(_HUB_NAME.fullmatch(model)) and not Path(model).exists()


def on_this_host(model: str, *, weights: bool = True) -> str:
    """Return a path or hub name unchanged; for a URI, the result of `local_directory`."""
    return str(local_directory(model, weights=weights)) if "://" in model else model


def files_of(model: str) -> tuple[pafs.FileSystem, list[pafs.FileInfo]] | None:
    """Return the files of a directory or URI, without folders; None for a hub name.

    Raises:
        UserError: The URI cannot be opened.
    """
    if "://" not in model and not os.path.isdir(model):
        return None
    try:
        fs, root = open_location(model)
        found = fs.get_file_info(pafs.FileSelector(root))
    except OSError as error:
        raise UserError(f"cannot read {model}: {error}") from error
    return fs, [file for file in found if file.type == pafs.FileType.File]


def local_directory(model: str, *, weights: bool = True) -> Path:
    """Return the directory of a local path; a cached copy of a URI or a Hub repository.

    A URI such as s3://bucket/model has its copy in the user's cache, under a name derived from the
    URI and the sizes and times of its files, so a model that was rewritten is fetched again; copies
    of earlier versions are then removed, unless a process that asked for one still runs. A
    repository is in the cache of huggingface_hub. The processes of one host fetch it once. An
    interrupted fetch leaves no directory that could be mistaken for a model. Folders that
    training adds to the model (checkpoints, logs) are not fetched, nor are the weights if `weights`
    is false (for example, for the tokenizer alone).

    Raises:
        UserError: The URI or the repository cannot be opened, or has no files.
    """
    if is_hub_name(model):
        return _from_hub(model, weights=weights)
    if "://" not in model:
        return Path(model).expanduser().absolute()
    found = files_of(model)
    assert found is not None
    fs, files = found
    if not weights:
        files = [file for file in files if not file.base_name.endswith(WEIGHTS)]
    if not files:
        raise UserError(f"no model at {model}")
    of_model = _digest([model, weights])
    version = _digest(sorted((f.base_name, f.size, f.mtime_ns) for f in files))
    name = f"{of_model}-{version}"
    cache = Path(platformdirs.user_cache_path("ochat_ray")) / "models"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"{name}.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        # Not closed: the process uses the copy until it ends.
        fcntl.flock(os.open(cache / f"{name}.use", os.O_RDWR | os.O_CREAT), fcntl.LOCK_SH)
        if not (cache / name).exists():
            unfinished = cache / f"{name}.unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            try:
                for file in files:
                    target = str(unfinished / file.base_name)
                    pafs.copy_files(file.path, target, source_filesystem=fs,
                                    destination_filesystem=pafs.LocalFileSystem())  # fmt: skip
            except OSError as error:
                raise UserError(f"cannot fetch {model}: {error}") from error
            os.rename(unfinished, cache / name)
            _remove_unused(cache, of_model, keep=name)
    return cache / name


def _from_hub(name: str, *, weights: bool) -> Path:
    """Return the snapshot of a Hub repository in the cache of huggingface_hub.

    Without a network it is the one that was fetched last.

    Raises:
        UserError: It cannot be fetched, and is not in the cache.
    """
    from huggingface_hub import snapshot_download

    kinds = ["*.json", "*.jinja", "*.model", "*.txt", *(["*.safetensors"] if weights else [])]
    try:
        # Patterns match complete paths: those of files in folders, such as checkpoints, too.
        return Path(snapshot_download(name, allow_patterns=kinds, ignore_patterns="*/*"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"there is no directory {Path(name).absolute()}, and the Hub's {name} cannot be "
            f"fetched: {one_line(error)}"
        ) from error


def weight_files(model: str) -> list[tuple[str, int]]:
    """Return names and sizes of the *.safetensors of a path or URI, without fetching them."""
    if "://" not in model:
        return sorted((f.name, f.stat().st_size) for f in local_directory(model).glob(SAFETENSORS))
    found = files_of(model)
    assert found is not None
    return sorted((f.base_name, f.size) for f in found[1] if fnmatch(f.base_name, SAFETENSORS))


def _remove_unused(cache: Path, of_model: str, *, keep: str) -> None:
    """Remove the copies of a model that no process uses, except one."""
    for path in cache.glob(f"{of_model}-*.use"):
        if path.stem == keep:
            continue
        with path.open("w") as use:
            try:
                fcntl.flock(use, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            shutil.rmtree(cache / path.stem, ignore_errors=True)


def _digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]
