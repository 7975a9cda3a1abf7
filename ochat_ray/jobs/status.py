"""Show what runs on a cluster: work and printed result of the command."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from ochat_ray.command_line import run
from ochat_ray.errors import UserError
from ochat_ray.status import overview
from ochat_ray.status.config import StatusConfig
from ochat_ray.status.deadline import call_all
from ochat_ray.status.runs import outputs_of, read_runs

TIMEOUT_S = 60.0
"""Seconds after which a cluster that does not answer counts as none: cron starts the next run."""


def work(config: StatusConfig) -> dict[str, Any]:
    """Return what `--json` prints."""
    prices = config.prices()
    from ochat_ray.cluster.state import read_cluster  # Ray, so that --help does not wait for it

    (cluster,) = call_all([partial(read_cluster, config.address)], TIMEOUT_S)
    if cluster is None:
        raise UserError(f"the Ray cluster did not answer within {TIMEOUT_S:.0f} s")
    if isinstance(cluster, BaseException):
        raise cluster
    now = time.time()
    outputs = outputs_of(cluster.jobs) | dict.fromkeys(config.output, "")
    runs = read_runs(outputs, now=now, stalled_after_s=60 * config.stalled_after)
    return asdict(overview.status_of(cluster, runs, prices, now=now, since_s=3600 * config.since))


def describe(config: StatusConfig, result: dict[str, Any]) -> str:  # noqa: ARG001
    """Return the result as text for a terminal."""
    return overview.describe(overview.Status(**result))


def status_of(config: StatusConfig, result: dict[str, Any]) -> int:
    """Return the exit status of a result."""
    if config.idle_for is not None:
        return int(result["idle_hours"] < config.idle_for)
    return int(bool(result["problems"]))


def main(arguments: Sequence[str], program: str = "ochat-ray status") -> int:
    """Run the command and return its exit status."""
    return run(lambda _: StatusConfig(), work, describe, program, arguments, status_of=status_of)
