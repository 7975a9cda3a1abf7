"""A process of tests/train/test_engine.py: `engine_process.py RANK WORLD_SIZE FOLDER`.

Runs the cases of FOLDER/task.json; the first rank writes the results to FOLDER/result.pt.
"""

import gc
from pathlib import Path

import numpy as np
import torch
from torch import distributed
from worker_process import end, folder, rank, task, world_size

from ochat_ray.tokenization.tokenizer import load_tokenizer
from ochat_ray.train import chunked_loss
from ochat_ray.train.adapter_export import export_checked
from ochat_ray.train.batch import make_batch, trained_weight
from ochat_ray.train.config import TrainConfig
from ochat_ray.train.engine import Engine, make_universal
from ochat_ray.train.loss import pack_scales
from ochat_ray.train.packing import plan

conversations = [
    (np.array(ids, np.int32), np.array(weights, np.float32))
    for ids, weights in task["conversations"]
]
lengths = [len(ids) for ids, _ in conversations]


def parameters(engine):
    whole = {}
    for name, parameter in engine.model.named_parameters():
        with engine.gathered(parameter):
            whole[name] = parameter.detach().float().clone()
    return whole


def packs_of(case):
    if "packs" in case:
        return case["packs"]
    (step,) = plan(
        lengths,
        world_size=world_size,
        max_tokens=case["max_tokens"],
        sequences_per_step=len(lengths),
        seed=0,
        epoch=0,
    )
    return step


def step(engine, packs, kind):
    weights = [
        [sum(trained_weight(conversations[i][1]) for i in pack) for pack in own] for own in packs
    ]
    return engine.step(
        [make_batch([conversations[i] for i in pack]) for pack in packs[rank]],
        pack_scales(weights, kind)[rank],
        rate=1.0,
    )


gc.freeze()  # DeepSpeed collects often, and would look at all that was imported
results = {}
for name, case in task["cases"].items():
    config = TrainConfig(**task["config"] | case.get("config", {}))
    convert = "universal" in case
    chunked_loss.CHUNK_LOGITS = case.get("chunk_logits", 1 << 26)
    engine = Engine(
        config, task["model"], vocabulary=case.get("vocabulary"), override=case.get("deepspeed"),
        universal=convert,
    )  # fmt: skip
    if convert:
        target = Path(case["universal"])
        if rank == 0 and not target.exists():
            make_universal(Path(case["load"]), target)
        distributed.barrier()
        engine.load(target)
    elif "load" in case:
        engine.load(Path(case["load"]))
    packs = packs_of(case)
    outcome = {"losses": [], "grad_norms": [], "before": parameters(engine)}
    own = [make_batch([conversations[i] for i in pack]) for pack in packs[rank]]
    evaluation = engine.evaluate(own, task["end_of_turn"])
    outcome["eval_loss"] = evaluation.loss
    outcome["in_chunks"] = any(map(engine._in_chunks, own))
    for number in range(1, case.get("steps", 1) + 1):
        result = step(engine, packs, config.loss)
        outcome["losses"].append(result.loss)
        outcome["grad_norms"].append(result.grad_norm)
        if number == case.get("save_after"):
            engine.save(Path(case["save"]))
    outcome["after"] = parameters(engine)
    if "export" in case:
        directory = Path(case["export"])
        directory.mkdir(exist_ok=True)
        pack = make_batch([conversations[1]])
        outcome["logits"] = engine.predict(pack)
        outcome["export"] = export_checked(
            engine, config, load_tokenizer(task["model"]), directory,
            model_type="openchat", base=task["model"], pack=pack,
        )  # fmt: skip
        distributed.barrier()
    results[name] = outcome
    del engine  # also ends transformers' partitioning of loaded weights
    gc.collect()

if rank == 0:
    torch.save(results, folder / "result.pt")
end()
