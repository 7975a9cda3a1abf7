"""Manifest of a run of `prepare`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from ochat_ray.data.config import PrepareConfig, Resolved
from ochat_ray.data.kinds import printable
from ochat_ray.data.parts.files import Summary
from ochat_ray.data.plan import Identity, Plan, content_of
from ochat_ray.data.statistics import Statistics, most_first
from ochat_ray.data.verify import DIGEST_MODULUS, FileSummary


def manifest_of(
    config: PrepareConfig,
    resolved: Resolved,
    plan: Plan,
    identity: Identity,
    files: Mapping[str, FileSummary],
    summaries: Sequence[Summary],
    statistics: Statistics,
) -> dict[str, Any]:
    """Return the manifest of a run from the counts of its passes.

    Args:
        config: The configuration.
        resolved: Its parsed values.
        plan: Inputs that were read.
        identity: The run's identity.
        files: Summaries of the tables' files.
        summaries: Summaries of the parts' tables, from the tokenization pass.
        statistics: Sums over the parts.
    """
    content = content_of(plan)
    digest = sum(int(summary["digest"], 16) for summary in summaries) % DIGEST_MODULUS
    return {
        "counts": statistics.counts(),
        "samples": statistics.rows.total(),
        "tokens": statistics.tokens(),
        "long": statistics.long(),
        "digest": f"{digest:064x}",
        "fidelity": statistics.fidelity(),
        "answers": {kind: statistics.answers[kind] for kind in ("html", "markdown")},
        "unknown_keys": most_first(statistics.unknown_keys),
        "left_out": most_first(statistics.left_out),
        "noise": most_first(statistics.noise),
        "tokenizer": identity.values["tokenizer"],
        "tokenizer_path": config.tokenizer,
        "model_type": config.model_type,
        **(
            {
                "template": asdict(identity.template),
                "template_notes": most_first(statistics.template_notes),
            }
            if identity.template
            else {}
        ),
        "context_length": config.max_length,
        "config": {
            "input": [printable(uri) for uri in config.input],
            **resolved.identity,
            "decontaminate": [printable(uri) for uri in config.decontaminate],
        },
        "inputs": content.described(),
        "identity": {**identity.values, "inputs": content.identity()},
        "run": plan.token,
        "files": dict(files),
        "seconds": {stage: round(s, 1) for stage, s in statistics.seconds.items()},
        "versions": {
            package: version(package)
            for package in ("ochat-ray", "ray", "transformers", "tokenizers", "pyarrow", "lxml")
        },
    }
