"""Fine-tune a model on token tables: work and printed result of the command."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ochat_ray.command_line import run
from ochat_ray.errors import UserError
from ochat_ray.recipes import DEMO
from ochat_ray.train.config import TrainConfig


def work(config: TrainConfig) -> dict[str, Any]:
    """Run the stage and return what `--json` prints."""
    if config.recipe == DEMO and not config.model:
        from ochat_ray.demo import assets

        config = replace(config, model=str(assets.base_model()))
    if not config.model:
        raise UserError(f"--model is needed with --recipe {config.recipe}")
    if config.dry_run:
        from ochat_ray.train.dry_run import dry_run

        return dry_run(config, colour=sys.stdout.isatty() and not config.json)
    from ochat_ray.train.launch import train  # Ray, so that --help does not wait for it

    return train(config)


def describe(config: TrainConfig, result: dict[str, Any]) -> str:
    """Return the result as text for a terminal."""
    if config.dry_run:
        from ochat_ray.train import dry_run

        return dry_run.describe(result)
    before, after = result["eval_before"], result["eval_after"]
    return (
        f"held-out loss {before['loss']:.4f} -> {after['loss']:.4f} · end of turn chosen "
        f"{100 * before['end_of_turn']:.0f}% -> {100 * after['end_of_turn']:.0f}% of the time\n"
        f"model: {config.output}   metrics: {config.output}/metrics.jsonl, report.html"
    )


def main(arguments: Sequence[str], program: str = "ochat-ray train") -> int:
    """Run the command and return its exit status."""
    return run(TrainConfig.for_recipe, work, describe, program, arguments)
