"""What every Ray Train worker does: plan, evaluate, train, evaluate, export."""

from __future__ import annotations

import json
import math
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import ray.train

from ochat_ray.run_dir import RunDir, read_manifest
from ochat_ray.tokenizer import end_of_turn_id, load_tokenizer
from ochat_ray.train import schedule
from ochat_ray.train.batch import trained_weight
from ochat_ray.train.config import TrainConfig
from ochat_ray.train.engine import Engine, Evaluation
from ochat_ray.train.export import export, publish
from ochat_ray.train.packing import Plan, plan
from ochat_ray.train.tokens import TokenTable

METRICS = "metrics.jsonl"
MODEL_MANIFEST = "ochat.json"


class NonFiniteLossError(RuntimeError):
    """The loss or the gradient's norm is not a number; names the step and its conversations."""


def train_worker(settings: dict[str, Any]) -> None:
    """The function that Ray Train runs on every worker; `settings` holds plain values."""
    config = TrainConfig(**settings["config"])
    rank = ray.train.get_context().get_world_rank()
    world_size = ray.train.get_context().get_world_size()
    run = RunDir.open(config.output)
    tokenizer = load_tokenizer(settings["base"])
    manifest = read_manifest(config.data)

    train_table = TokenTable(config.data, "train", config.max_length)
    steps = all_steps(config, train_table.lengths, world_size)
    used = {i for step in steps for packs in step for pack in packs for i in pack}
    weight_of = {i: trained_weight(train_table.row(i)[1]) for i in used}

    engine = Engine(config, settings["base"])
    log = _Log(run if rank == 0 else None, total_steps=len(steps))
    before = _evaluate(engine, config, tokenizer, rank, world_size)
    log.write({"step": 0, **_eval_metrics(before)})

    for number, step in enumerate(steps, start=1):
        started = time.monotonic()
        rate = schedule.rate(number, total_steps=len(steps), warmup_ratio=config.warmup_ratio)
        indices = [i for packs in step for pack in packs for i in pack]
        result = engine.step(
            [train_table.batch(pack).to(engine.device) for pack in step[rank]],
            # A step without any weight has a gradient of 0, not of 0 / 0.
            weight=sum(weight_of[i] for i in indices) or 1.0,
            rate=rate,
        )
        if not (math.isfinite(result.loss) and math.isfinite(result.grad_norm)):
            ids = ", ".join(train_table.id(i) for i in indices[:8])
            raise NonFiniteLossError(
                f"step {number}: loss {result.loss}, gradient norm {result.grad_norm}; "
                f"conversations {ids}{', …' if len(indices) > 8 else ''}"
            )
        tokens = int(train_table.lengths[indices].sum())
        log.write(
            {
                "step": number,
                "loss": result.loss,
                "learning_rate": rate * config.learning_rate,
                "grad_norm": result.grad_norm,
                "conversations": len(indices),
                "tokens": tokens,
                "seconds": time.monotonic() - started,
            }
        )

    after = _evaluate(engine, config, tokenizer, rank, world_size)
    log.write({"step": len(steps), **_eval_metrics(after)})
    with tempfile.TemporaryDirectory(dir=settings["staging"], prefix="export-") as staging:
        export(engine, tokenizer, Path(staging), manifest["model_type"])
        if rank == 0:
            publish(Path(staging), run)
    if rank == 0:
        record = {
            "recipe": config.recipe,
            "model_type": manifest["model_type"],
            "context_length": manifest["context_length"],
            "data_digest": manifest["digest"],
            "tokenizer": manifest["tokenizer"],
            "conversations": len(train_table.lengths),
            "step": len(steps),
            "world_size": world_size,
            "zero_stage": config.zero_stage,
            "eval_before": asdict(before),
            "eval_after": asdict(after),
            "config": asdict(config),
            "identity": settings["identity"],
        }
        run.write_json(MODEL_MANIFEST, record)
    ray.train.report({"eval_loss": after.loss})


def all_steps(config: TrainConfig, lengths: np.ndarray, world_size: int) -> Plan:
    """The plans of all epochs one after the other, up to `max_steps`."""
    steps: Plan = []
    for epoch in range(config.epochs):
        steps += plan(
            lengths,
            world_size=world_size,
            max_tokens=config.max_tokens,
            sequences_per_step=config.sequences_per_step,
            seed=config.seed,
            epoch=epoch,
        )
        if config.max_steps is not None and len(steps) >= config.max_steps:
            return steps[: config.max_steps]
    return steps


def _evaluate(
    engine: Engine, config: TrainConfig, tokenizer: Any, rank: int, world_size: int
) -> Evaluation:
    table = TokenTable(config.data, "eval", config.max_length)
    chosen = table.sample(config.eval_tokens, config.seed)
    packs = [
        [chosen[i] for i in pack]
        for step in plan(
            table.lengths[chosen],
            world_size=world_size,
            max_tokens=config.max_tokens,
            seed=config.seed,
            epoch=0,
        )
        for pack in step[rank]
    ]
    return engine.evaluate(
        [table.batch(pack).to(engine.device) for pack in packs], end_of_turn_id(tokenizer)
    )


def _eval_metrics(evaluation: Evaluation) -> dict[str, float]:
    return {"eval_loss": evaluation.loss, "eval_end_of_turn": evaluation.end_of_turn}


class _Log:
    """metrics.jsonl, rewritten whole after each line so that a reader never sees half of one."""

    def __init__(self, run: RunDir | None, total_steps: int) -> None:
        self._run = run
        self._lines: list[str] = []
        self._total_steps = total_steps

    def write(self, metrics: dict[str, Any]) -> None:
        if self._run is None:
            return
        self._lines.append(json.dumps({**metrics, "total_steps": self._total_steps}))
        self._run.write_text(METRICS, "\n".join(self._lines) + "\n")
