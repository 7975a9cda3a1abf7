"""A process of tests/train/test_export_zero.py: `export_process.py RANK SIZE FOLDER`.

Trains the model of each case of FOLDER/task.json for one step, exports it and loads the export;
writes the logits' differences to FOLDER/result.json on the first rank.
"""

import gc
import json
from pathlib import Path

import numpy as np
from torch import distributed
from worker_process import end, folder, rank, task, world_size

from ochat_ray.models.base_model import vocabulary_size
from ochat_ray.tokenization.tokenizer import load_tokenizer
from ochat_ray.train.batch import make_batch
from ochat_ray.train.config import TrainConfig
from ochat_ray.train.engine import Engine
from ochat_ray.train.export import export
from ochat_ray.train.round_trip import check_export

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
end()
