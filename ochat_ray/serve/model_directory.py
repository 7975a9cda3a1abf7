"""A model's directory on this host, whether it lies here or at a URI."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from pathlib import Path

import platformdirs
import pyarrow.fs as pafs

from ochat_ray.errors import UserError
from ochat_ray.run_dir import open_location


def local_directory(model: str) -> Path:
    """The directory of a local path; of a URI such as s3://bucket/model, a copy that is kept.

    The copy lies in the user's cache under a name made of the URI and of the sizes and times of
    its files: a model that was written again is fetched again. The processes of one host fetch it
    once; one that is broken off leaves nothing that another would take for a model. The
    folders that train keeps beside the model (checkpoints, logs) are not fetched.

    Raises:
        UserError: the URI cannot be opened, or has no files.
    """
    if "://" not in model:
        return Path(model).expanduser().absolute()
    try:
        fs, root = open_location(model)
        files = [
            file
            for file in fs.get_file_info(pafs.FileSelector(root))
            if file.type == pafs.FileType.File
        ]
    except OSError as error:
        raise UserError(f"cannot read {model}: {error}") from error
    if not files:
        raise UserError(f"no model at {model}")
    name = hashlib.sha256(
        repr([model, sorted((f.base_name, f.size, f.mtime_ns) for f in files)]).encode()
    ).hexdigest()[:32]
    cache = Path(platformdirs.user_cache_path("ochat_ray")) / "models"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"{name}.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
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
    return cache / name
