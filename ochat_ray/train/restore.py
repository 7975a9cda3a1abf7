"""Local copy of a checkpoint on a worker's host, converted if needed."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import ray.train
from torch import distributed

from ochat_ray.run_dir import open_location
from ochat_ray.train.checkpoint import Checkpoint, check_shards
from ochat_ray.train.engine import make_universal


@contextlib.contextmanager
def local_copy(
    output: str,
    checkpoint: Checkpoint,
    *,
    staging: str,
    node_rank: int,
    converts: bool,
    leads: bool,
) -> Iterator[Path]:
    """Provide the checkpoint's directory on this host; all workers must enter together.

    Args:
        output: output directory of the run.
        checkpoint: one of its checkpoints.
        staging: directory that all workers can write to.
        node_rank: rank of this host among those of the run.
        converts: convert it to a universal checkpoint.
        leads: whether this worker does the conversion for its host.

    Raises:
        UserError: one of the checkpoint's shards is damaged.
    """
    fs, root = open_location(output)
    source = ray.train.Checkpoint(f"{root}/{checkpoint.folder}", filesystem=fs)
    with source.as_directory() as directory:
        own = sorted(checkpoint.files)[distributed.get_rank() :: distributed.get_world_size()]
        check_shards(Path(directory), own, f"{output}/{checkpoint.folder}")
        distributed.barrier()  # no worker loads a shard before all are checked
        if not converts:
            yield Path(directory)
            return
        os.makedirs(staging, exist_ok=True)
        converted = Path(staging, f"universal-{node_rank}")
        if leads:
            shutil.rmtree(converted, ignore_errors=True)
            make_universal(Path(directory), converted)
        distributed.barrier()
        yield converted
        if leads:
            shutil.rmtree(converted, ignore_errors=True)
