"""Prepare: conversations to token tables. `python jobs/prepare.py --help`."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

from ochat_ray.command_line import run
from ochat_ray.data.config import PrepareConfig
from ochat_ray.errors import UserError


def work(config: PrepareConfig) -> dict[str, Any]:
    from ochat_ray.data.pipeline import prepare  # Ray, so that --help does not wait for it

    return prepare(with_inputs(config))


def with_inputs(config: PrepareConfig) -> PrepareConfig:
    """The configuration with the demo's inputs, fetched if need be, where none are given."""
    if config.recipe == "demo":
        from ochat_ray import demo_assets

        config = replace(
            config,
            input=config.input or (str(demo_assets.conversations()),),
            tokenizer=config.tokenizer or str(demo_assets.base_model()),
        )
    for flag in ("input", "tokenizer"):
        if not getattr(config, flag):
            raise UserError(f"--{flag} is needed with --recipe {config.recipe}")
    return config


def describe(config: PrepareConfig, manifest: dict[str, Any]) -> str:
    counts, tokens = manifest["counts"], manifest["tokens"]
    dropped = ", ".join(f"{reason} {n:,}" for reason, n in counts["dropped"].items()) or "none"
    return (
        f"read {counts['read']:,} · kept {counts['kept']:,} · dropped: {dropped}\n"
        f"tokens: train {tokens['train']['tokens']:,}, eval {tokens['eval']['tokens']:,}, "
        f"in {manifest['samples']:,} samples\n"
        f"data: {config.output}   report: {config.output}/report.html"
    )


if __name__ == "__main__":
    sys.exit(run(PrepareConfig.for_recipe, work, describe, "jobs/prepare.py"))
