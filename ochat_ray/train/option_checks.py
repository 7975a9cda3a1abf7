"""Checks of options that depend on each other."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ochat_ray.command_line import flag
from ochat_ray.errors import UserError
from ochat_ray.train.lora_options import check_lora

if TYPE_CHECKING:
    from ochat_ray.train.config import TrainConfig


def check_options(config: TrainConfig) -> None:
    """Check schedule, frozen parameters, adapters, the start from a checkpoint and samples.

    Raises:
        UserError: a value is invalid or would have no effect.
    """
    _check_schedule(config)
    _check_freeze(config)
    check_lora(config)
    _check_from_checkpoint(config)
    usual = type(config).for_recipe(config.recipe)
    for name in ("sample_prompts", "sample_tokens"):
        if config.sample_every is None and getattr(config, name) != getattr(usual, name):
            raise UserError(f"{flag(name)} has no effect without --sample-every; leave it out")


def check_workers(config: TrainConfig) -> None:
    """Check the minimum number of workers, if their number is known.

    Raises:
        UserError: it has no effect.
    """
    known = config.num_workers > 0
    if known and config.num_workers_min and config.num_workers_min >= config.num_workers:
        raise UserError(
            f"--num-workers-min {config.num_workers_min} has no effect with --num-workers "
            f"{config.num_workers}; give a smaller one or none"
        )


def _check_schedule(config: TrainConfig) -> None:
    if not 0.0 <= config.min_rate_ratio < 1.0:
        raise UserError(f"--min-rate-ratio must be in [0, 1), not {config.min_rate_ratio}")
    if config.min_rate_ratio and config.schedule == "constant":
        raise UserError("--min-rate-ratio has no effect with --schedule constant; leave it out")
    if config.wsd_decay_ratio is not None:
        if config.schedule != "wsd":
            raise UserError("--wsd-decay-ratio has no effect without --schedule wsd; leave it out")
        if not 0.0 < config.wsd_decay_ratio <= 1.0:
            raise UserError(f"--wsd-decay-ratio must be in (0, 1], not {config.wsd_decay_ratio}")
        if config.warmup_ratio + config.wsd_decay_ratio > 1.0:
            raise UserError(
                f"--warmup-ratio {config.warmup_ratio} and --wsd-decay-ratio "
                f"{config.wsd_decay_ratio} together must be at most 1"
            )


def _check_freeze(config: TrainConfig) -> None:
    for pattern in config.freeze:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(f"--freeze {pattern!r} is not a regular expression: {error}") from error


def _check_from_checkpoint(config: TrainConfig) -> None:
    chosen = config.from_checkpoint
    if chosen is None:
        return
    if chosen not in ("latest", "best") and not re.fullmatch("[1-9][0-9]*", chosen):
        raise UserError(
            f"--from-checkpoint must be a checkpoint's step, latest or best, not {chosen}"
        )
    for other in ("resume", "overwrite"):
        if getattr(config, other):
            raise UserError(f"--from-checkpoint and --{other} exclude each other; give one")
