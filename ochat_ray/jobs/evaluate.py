"""Evaluate a served model: work and printed result of the command."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from ochat_ray.command_line import run
from ochat_ray.evaluate.config import EvaluateConfig, replace_renamed_options


def work(config: EvaluateConfig) -> dict[str, Any]:
    """Run the stage and return what `--json` prints."""
    config.check()
    if config.annotations:
        from ochat_ray.evaluate.alpaca import read_annotations

        return read_annotations(config.annotations, model=next(iter(config.model), None))
    if config.is_demo:
        from ochat_ray.evaluate import demo
        from ochat_ray.serve.temporary import served

        return demo.run(config, served)
    from ochat_ray.evaluate import steps

    if "RAY_ADDRESS" in os.environ:  # set in the jobs of a cluster
        from ochat_ray.evaluate.spread import connect

        return steps.run(config, connect)
    return steps.run(config)


def describe(_config: EvaluateConfig, result: dict[str, Any]) -> str:
    """Return the result as text for a terminal."""
    if "scores" not in result:
        return json.dumps(result, indent=2)
    lines = []
    for one in result["scores"]:
        if one["score"] is None:
            lines.append(f"{one['model']}: nothing was judged")
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
