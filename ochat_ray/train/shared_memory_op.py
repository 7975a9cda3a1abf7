"""DeepSpeed's operator for collectives on a CPU, which is compiled when it is first used."""

from __future__ import annotations

import fcntl
from pathlib import Path


def load_shared_memory_op() -> None:
    """Compile it, if need be, and load it; `deepspeed.init_distributed` then finds it.

    torch guards the folder by a file that a killed process leaves behind, and then waits for ever.
    Here processes wait for each other by a lock that ends with its holder; such a file that is
    still there is of one that is gone.
    """
    import deepspeed  # slow
    from deepspeed.accelerator import get_accelerator
    from torch.utils.cpp_extension import _get_build_directory

    builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
    if builder is None or not deepspeed.ops.__compatible_ops__.get(builder.NAME, False):
        return
    folder = Path(_get_build_directory(builder.name, verbose=False))
    with (folder / "ochat_ray.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        (folder / "lock").unlink(missing_ok=True)
        builder.load(verbose=False)
