"""Convert conversations to token tables: work and printed result of the command."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ochat_ray.command_line import run
from ochat_ray.data.advice import last_lines
from ochat_ray.data.config import PrepareConfig
from ochat_ray.errors import UserError
from ochat_ray.recipes import DEMO


def work(config: PrepareConfig) -> dict[str, Any]:
    """Run the stage and return what `--json` prints."""
    from ochat_ray.data.pipeline import prepare  # imports Ray, which --help does not need

    return prepare(with_inputs(config))


def with_inputs(config: PrepareConfig) -> PrepareConfig:
    """Return the configuration, with the demo's inputs (fetched if needed) where none are given."""
    if config.recipe == DEMO:
        from ochat_ray.demo import assets

        config = replace(
            config,
            input=config.input or (str(assets.conversations()),),
            tokenizer=config.tokenizer or str(assets.base_model()),
        )
    for flag in ("input", "tokenizer"):
        if not getattr(config, flag):
            raise UserError(f"--{flag} is needed with --recipe {config.recipe}")
    return config


def describe(config: PrepareConfig, manifest: dict[str, Any]) -> str:
    """Return the result as text for a terminal."""
    counts, tokens = manifest["counts"], manifest["tokens"]
    lines = [
        f"read {counts['read']:,} · kept {counts['kept']:,}",
        f"tokens: train {tokens['train']['tokens']:,}, eval {tokens['eval']['tokens']:,}, "
        f"in {manifest['samples']:,} samples",
        f"data: {config.output}   report: {config.output}/report.html",
        f"dropped: {most(counts['dropped'])} · passed over: {most(counts['passed_over'])}",
    ]
    if keys := manifest["unknown_keys"]:
        lines.append(f"unknown keys: {most(keys)}")
    if notes := manifest.get("template_notes"):
        lines.append(f"chat template: {most(notes)} (explained in the report)")
    return "\n".join([*lines, *last_lines(config, manifest)])


def most(counts: dict[str, int], shown: int = 6) -> str:
    """Format names and counts as one line; those beyond `shown` are summed as "others"."""
    names = [f"{name} {n:,}" for name, n in list(counts.items())[:shown]]
    if rest := sum(list(counts.values())[shown:]):
        names.append(f"others {rest:,}")
    return ", ".join(names) or "none"


def main(arguments: Sequence[str], program: str = "ochat-ray prepare") -> int:
    """Run the command and return its exit status."""
    return run(PrepareConfig.for_recipe, work, describe, program, arguments)
