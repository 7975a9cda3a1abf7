"""The suites by name."""

from __future__ import annotations

from ochat_ray.evaluate.alpaca import AlpacaEval
from ochat_ray.evaluate.arena_hard import ArenaHard
from ochat_ray.evaluate.code_tasks import CodeTasks
from ochat_ray.evaluate.config import EvaluateConfig
from ochat_ray.evaluate.mt_bench import MTBenchPairs, MTBenchRatings
from ochat_ray.evaluate.own import ExactMatch, RatedByReference
from ochat_ray.evaluate.suite import Suite
from ochat_ray.evaluate.vicuna import Vicuna

SUITES: dict[str, type[Suite]] = {
    "vicuna": Vicuna, "mt_bench": MTBenchRatings, "alpaca_eval": AlpacaEval,
    "arena_hard": ArenaHard, "code": CodeTasks,
}  # fmt: skip


def suite_of(config: EvaluateConfig) -> Suite:
    """Return the suite that the configuration names, with its questions."""
    if config.suite == "own":
        return RatedByReference(config) if config.judge else ExactMatch(config)
    return (MTBenchPairs if config.pairwise else SUITES[config.suite])(config)
