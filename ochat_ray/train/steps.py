"""Optimizer steps of a run: conversations, learning rate, and evaluations and checkpoints.

A step's conversations do not depend on the number of workers, so a run can resume with another
number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from ochat_ray.train import packing, schedule
from ochat_ray.train.config import TrainConfig
from ochat_ray.train.packing import Pack


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """Optimizer step, numbered from 1.

    `packs[rank]` are a worker's packs; `rate` is the learning rate as a share of its peak.
    `evaluates` and `saves` are whether an evaluation and a checkpoint follow the step.
    """

    number: int
    epoch: int
    packs: list[list[Pack]]
    rate: float
    evaluates: bool
    saves: bool

    @property
    def conversations(self) -> list[int]:
        """Indices of the step's conversations, over all workers."""
        return [index for packs in self.packs for pack in packs for index in pack]


def forward_passes(
    packs: list[list[Pack]], rank: int, *, packed: bool
) -> list[tuple[Pack, int | None]]:
    """Return a worker's forward passes of a step, each with its pack's position in `packs[rank]`.

    One per pack if `packed`. Otherwise one per conversation, for models that cannot isolate the
    conversations of a pack; under ZeRO-3 all workers need the same number, so the list is filled up
    with empty passes, which belong to no pack.
    """
    if packed:
        return [(pack, position) for position, pack in enumerate(packs[rank])]
    passes: list[tuple[Pack, int | None]] = [
        ([index], position) for position, pack in enumerate(packs[rank]) for index in pack
    ]
    most = max(1, *(sum(len(pack) for pack in own) for own in packs))
    return passes + [([], None)] * (most - len(passes))


def packed_lengths(
    lengths: np.ndarray, max_tokens: int, min_length_for_own_pack: int | None
) -> np.ndarray:
    """Return the tokens of a pack that each conversation occupies; a long one occupies all."""
    if min_length_for_own_pack is None:
        return lengths
    return np.where(lengths >= min_length_for_own_pack, np.maximum(lengths, max_tokens), lengths)


def held_out_steps(
    config: TrainConfig, lengths: np.ndarray, world_size: int, min_length_for_own_pack: int | None
) -> Iterator[packing.StepPacks]:
    """Yield the packs of an evaluation on conversations of these lengths (tokens)."""
    return packing.steps(
        packed_lengths(lengths, config.max_tokens, min_length_for_own_pack),
        world_size=world_size,
        max_tokens=config.max_tokens,
        seed=config.seed,
        epoch=0,
    )


class Steps:
    """Steps of a run over conversations of these lengths (tokens).

    `attention_tokens` is the length at which attention costs as much as everything else;
    `min_length_for_own_pack` the length from which a conversation must not share its pack. The
    learning-rate schedule covers the steps after `schedule_from`.
    """

    def __init__(
        self,
        config: TrainConfig,
        lengths: np.ndarray,
        *,
        attention_tokens: float | None = None,
        min_length_for_own_pack: int | None = None,
        schedule_from: int = 0,
    ) -> None:
        self._config = config
        self._schedule_from = schedule_from
        self._lengths = packed_lengths(lengths, config.max_tokens, min_length_for_own_pack)
        self._costs = {} if attention_tokens is None else {"attention_tokens": attention_tokens}
        self._per_epoch: list[int] = []
        for epoch in range(config.epochs):
            left = None if config.max_steps is None else config.max_steps - sum(self._per_epoch)
            if left == 0:
                break
            count = packing.count_steps(self._lengths, **self._arguments(epoch, 1))
            self._per_epoch.append(count if left is None else min(count, left))

    @property
    def per_epoch(self) -> list[int]:
        """Steps of each epoch; the last is shorter where `max_steps` ends it."""
        return self._per_epoch

    def __len__(self) -> int:
        return sum(self._per_epoch)

    def after(self, done: int, world_size: int) -> Iterator[Step]:
        """Yield the steps after `done` steps, assigned to `world_size` workers."""
        config = self._config
        first = 1
        for epoch, count in enumerate(self._per_epoch):
            if done < first + count - 1:
                skipped = max(0, done - first + 1)
                plans = packing.steps(self._lengths, **self._arguments(epoch, world_size))
                for position, packs in enumerate(islice(plans, skipped, count), skipped):
                    number = first + position
                    ends = position == count - 1
                    every = config.eval_every
                    evaluates = ends or (every is not None and number % every == 0)
                    yield Step(
                        number=number,
                        epoch=epoch,
                        packs=packs,
                        rate=self._rate(number),
                        evaluates=evaluates,
                        # With early stopping each evaluated model may be the best.
                        saves=(evaluates and config.early_stopping is not None)
                        or ends
                        or number % config.checkpoint_every == 0,
                    )
            first += count

    def _rate(self, number: int) -> float:
        config = self._config
        return schedule.rate(
            number - self._schedule_from,
            total_steps=len(self) - self._schedule_from,
            warmup_ratio=config.warmup_ratio,
            from_zero=config.loss == "openchat-2023",
            schedule=config.schedule,
            min_ratio=config.min_rate_ratio,
            decay_ratio=config.wsd_decay_ratio or schedule.WSD_DECAY_RATIO,
        )

    def _arguments(self, epoch: int, world_size: int) -> dict[str, Any]:
        return {
            "world_size": world_size,
            "max_tokens": self._config.max_tokens,
            "seed": self._config.seed,
            "epoch": epoch,
            **self._config.step_size,
            **self._costs,
        }
