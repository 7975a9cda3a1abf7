"""Plan of a run for `jobs/train.py --dry-run`, without starting anything."""

from __future__ import annotations

from dataclasses import replace
from itertools import takewhile
from typing import Any

from ochat_ray.models.fingerprint import fingerprint
from ochat_ray.tokenization.chat_tokenizer import load_tokenizer_of
from ochat_ray.train.config import TrainConfig
from ochat_ray.train.continuation import find_resume_checkpoint, schedule_from, start_of
from ochat_ray.train.deepspeed_config import deepspeed_config
from ochat_ray.train.derived import (
    extended_config,
    identity_of,
    min_length_for_own_pack,
    steps_of,
    with_step_size,
)
from ochat_ray.train.dry_run import coloured_pack, dry_run
from ochat_ray.train.engine import device_memory
from ochat_ray.train.lora import shape_of
from ochat_ray.train.memory import MemoryPlan, estimate_run, longest_pack
from ochat_ray.train.output import output_of
from ochat_ray.train.preflight import check_inputs, check_steps, probe_on_driver
from ochat_ray.train.samples import prompts_of
from ochat_ray.train.tokens import TokenTable
from ochat_ray.train.workers import with_workers


def planned(config: TrainConfig, *, colour: bool) -> dict[str, Any]:
    """Return the result of `dry_run` and, as "pack", the first step's first pack decoded.

    It reads the model's configuration, not its weights. bfloat16 is assumed unless the options set
    float32, since the workers' hardware is not known.

    Raises:
        UserError: data, model and options do not fit each other.
    """
    config.check()
    config = with_workers(config, start_ray=False)
    manifest = check_inputs(config)
    config = with_step_size(config, find_resume_checkpoint(config))
    identity = identity_of(config, manifest, fingerprint(config.model))
    start = start_of(config, identity, output_of(config.output))
    check_steps(config, manifest, start)
    prompts_of(config, manifest)
    table = TokenTable(config.data, "train", config.max_length)
    model_config = extended_config(config, config.model, manifest)
    mode = probe_on_driver(config, model_config)
    shape = shape_of(config, model_config)
    steps = steps_of(config, table, shape, min_length_for_own_pack(model_config), start.identity)
    bf16 = config.dtype != "float32"
    epoch = [
        step.packs
        for step in takewhile(lambda step: step.epoch == 0, steps.after(0, config.num_workers))
    ]
    given = config.gpu_memory_gib
    device_bytes = device_memory() if given is None else int(given * 2**30)

    def memory(max_tokens: int) -> MemoryPlan:
        return estimate_run(
            replace(config, max_tokens=max_tokens),
            shape,
            world_size=config.num_workers,
            bf16=bf16,
            attention=mode.attention,
        )

    result = dry_run(
        config,
        lengths=table.lengths,
        epoch=epoch,
        steps_per_epoch=steps.per_epoch,
        world_size=config.num_workers,
        schedule_from=schedule_from(start.identity),
        shape=shape,
        memory=memory(config.max_tokens),
        device_bytes=device_bytes,
        longest_pack=None if device_bytes is None else longest_pack(memory, device_bytes),
        deepspeed=deepspeed_config(config, world_size=config.num_workers, bf16=bf16, cuda=True),
        mode=mode,
    )
    pack = epoch[0][0][0]
    rows = [table.row(index) for index in pack]
    starts = [sum(len(ids) for ids, _ in rows[:n]) for n in range(len(rows))]
    ids = [int(i) for ids, _ in rows for i in ids]
    weights = [float(w) for _, weights in rows for w in weights]
    tokenizer = load_tokenizer_of(config.model, manifest)
    return result | {"pack": coloured_pack(ids, weights, starts, tokenizer, colour=colour)}
