"""Evaluate a served model: work and printed result of the command."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from ochat_ray.command_line import run
from ochat_ray.evaluate.config import EvaluateConfig, replace_renamed_options


def work(config: EvaluateConfig) -> dict[str, Any]:
    """Run the stage and return what `--json` prints."""
    config = config.with_output()
    if config.suite == "own" and config.step not in ("compare", "tasks"):
        from ochat_ray.evaluate import own_models

        return own_models.run(config, _served)
    config.check()
    if config.step == "compare":
        from ochat_ray.evaluate.comparison import compare

        return compare(config.runs, config.output, seed=config.seed)
    if config.step == "tasks":
        from ochat_ray.evaluate.harness import run_tasks

        return run_tasks(config)
    if config.annotations:
        from ochat_ray.evaluate.alpaca import read_annotations

        return read_annotations(
            config.annotations,
            model=next(iter(config.model), None),
            difficulty=config.difficulty,
        )
    if config.is_demo:
        from ochat_ray.evaluate import demo
        from ochat_ray.serve.temporary import served

        return demo.run(config, served)
    from ochat_ray.evaluate import steps

    return steps.run(config)


def _served(models: Mapping[str, str]) -> AbstractContextManager[Mapping[str, str]]:
    from ochat_ray.serve.temporary import served_on_gpu  # imports Ray, which takes seconds

    return served_on_gpu(models)


def describe(_config: EvaluateConfig, result: dict[str, Any]) -> str:
    """Return the result as text for a terminal."""
    if "page" in result:
        rows = [(group, row) for group in result["groups"] for row in group["rows"]]
        scores = [
            f"{group['suite']}, {row['name']}: {row['score']:.2f} ({row['low']:.2f} to "
            f"{row['high']:.2f}) {group['unit']}"
            for group, row in rows
            if row["score"] is not None
        ]
        return "\n".join([*scores, *result["notes"], f"comparison: {result['page']}"])
    if "scores" not in result:
        return json.dumps(result, indent=2)
    lines = []
    for one in result["scores"]:
        if one["score"] is None:
            read = one["failed"] < one["judgments"]
            why = "the baseline has no points to compare with" if read else "nothing was judged"
            lines.append(f"{one['model']}: {why}")
            continue
        share = one["failed"] / one["judgments"]
        lines.append(
            f"{one['model']}: {one['score']:.2f} ({one['low']:.2f} to {one['high']:.2f}) "
            f"{result['unit']} · {share:.1%} of the judgments could not be read"
        )
    lines += result["warnings"]
    return "\n".join([*lines, f"report: {result['config']['output']}/report.html"])


def main(arguments: Sequence[str], program: str = "ochat-ray evaluate") -> int:
    """Run the command and return its exit status."""
    current = replace_renamed_options(arguments)
    return run(lambda _recipe: EvaluateConfig(), work, describe, program, current)
