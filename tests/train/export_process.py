"""A process of tests/train/test_export_zero.py: `export_process.py RANK SIZE FOLDER`.

Trains the model of each case of FOLDER/task.json for one step, exports it and loads the export;
writes the logits' differences to FOLDER/result.json on the first rank.
"""

import gc
import json
import os
import sys
import time
from pathlib import Path

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

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import distributed  # noqa: E402

torch.set_num_threads(1)
distributed.init_process_group("gloo", rank=rank, world_size=world_size)

from ochat_ray.models.base_model import vocabulary_size  # noqa: E402
from ochat_ray.tokenization.tokenizer import load_tokenizer  # noqa: E402
from ochat_ray.train.batch import make_batch  # noqa: E402
from ochat_ray.train.config import TrainConfig  # noqa: E402
from ochat_ray.train.engine import Engine  # noqa: E402
from ochat_ray.train.export import export  # noqa: E402
from ochat_ray.train.round_trip import check_export  # noqa: E402

ids = np.random.default_rng(0).integers(1, 280, 40)
pack = make_batch([(ids, np.ones(40, np.float32))])
differences = {}
for name, case in task["cases"].items():
    config = TrainConfig(gradient_checkpointing=False, attention="eager", **case["config"])
    tokenizer = load_tokenizer(case["base"])
    engine = Engine(config, case["base"], vocabulary=vocabulary_size(tokenizer))
    engine.step([pack], [1 / 39 / world_size], rate=1.0)
    directory = Path(case["export"])
    export(engine, tokenizer, directory, "openchat")
    expected = engine.predict(pack)
    if rank == 0:
        with engine.unpartitioned_loading():
            differences[name] = check_export(directory, pack, expected, engine.dtype)
    distributed.barrier()
    del engine
    gc.collect()

if rank == 0:
    (folder / "result.json").write_text(json.dumps(differences))
distributed.barrier()

# As in engine_process.py.
(folder / f"done-{rank}").touch()
while len(list(folder.glob("done-*"))) < world_size:
    time.sleep(0.01)
sys.stdout.flush()
os._exit(0)
