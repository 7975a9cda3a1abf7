"""Start and end of a process that is one worker, for tests: `SCRIPT RANK WORLD_SIZE FOLDER`.

DeepSpeed, gloo and ZeRO-3's partitioning exist once per process, so the tests start new ones.
FOLDER/task.json has their cases, and the port at which they meet.
"""

import json
import os
import sys
import time
from pathlib import Path

import torch
from torch import distributed

rank, world_size, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
task = json.loads((folder / "task.json").read_text())
os.environ |= {
    "DS_ACCELERATOR": "cpu",
    "RANK": str(rank),
    "LOCAL_RANK": str(rank),
    "WORLD_SIZE": str(world_size),
    "LOCAL_SIZE": str(world_size),
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": str(task["port"]),
}
torch.set_num_threads(1)
distributed.init_process_group("gloo", rank=rank, world_size=world_size)


def end():
    """End this process, without an error.

    All are through the barrier before one goes. Nothing is taken down: a thread of gloo's that then
    waits for the GIL would end the process by std::terminate.
    """
    distributed.barrier()
    (folder / f"done-{rank}").touch()
    while len(list(folder.glob("done-*"))) < world_size:
        time.sleep(0.01)
    sys.stdout.flush()
    os._exit(0)
