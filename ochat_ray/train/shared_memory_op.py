"""DeepSpeed's operator for collective operations on a CPU, which is compiled on first use."""

from __future__ import annotations

import fcntl
from pathlib import Path


def load_shared_memory_op() -> None:
    """Compile the operator if needed and load it, for `deepspeed.init_distributed`.

    torch 2.13 locks the build folder by a file, which remains if the process is killed; others then
    wait forever (pytorch issue 189245). Here processes wait on a lock that the system releases when
    its owner ends, so an existing lock file of torch is stale and is removed.
    """
    import deepspeed  # slow
    from deepspeed.accelerator import get_accelerator
    from torch.utils.cpp_extension import _get_build_directory  # torch 2.13: no public one

    builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
    if builder is None or not deepspeed.ops.__compatible_ops__.get(builder.NAME, False):
        return
    folder = Path(_get_build_directory(builder.name, verbose=False))
    with (folder / "ochat_ray.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        (folder / "lock").unlink(missing_ok=True)
        builder.load(verbose=False)
