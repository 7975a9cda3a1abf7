"""A process killed while compiling DeepSpeed's operator does not block later ones."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils.cpp_extension import _get_build_directory

LOAD = (
    "from ochat_ray.train.shared_memory_op import load_shared_memory_op as l; l(); print('loaded')"
)


@pytest.mark.timeout(240)
def test_the_lock_file_of_a_killed_process_is_ignored():
    lock = Path(_get_build_directory("deepspeed_shm_comm", verbose=False)) / "lock"
    lock.touch()
    done = []
    try:
        done = [
            subprocess.Popen(
                [sys.executable, "-c", LOAD],
                env=os.environ | {"DS_ACCELERATOR": "cpu"},
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(2)
        ]
        assert ["loaded" in process.communicate(timeout=200)[0] for process in done] == [True] * 2
    finally:
        for process in done:
            process.kill()
        lock.unlink(missing_ok=True)
