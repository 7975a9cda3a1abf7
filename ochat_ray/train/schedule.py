"""Learning-rate schedules."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["cosine", "linear", "constant", "wsd"]

WSD_DECAY_RATIO = 0.1
"""Default share of the steps in which `wsd` decays (Hu et al., 2024, MiniCPM, arXiv:2404.06395)."""


def rate(
    step: int,
    *,
    total_steps: int,
    warmup_ratio: float,
    from_zero: bool = False,
    schedule: Schedule = "cosine",
    min_ratio: float = 0.0,
    decay_ratio: float = WSD_DECAY_RATIO,
) -> float:
    """Return the learning rate of a step, as a share of its peak.

    Args:
        step: number of the step, from 1. The first step has a rate above 0, and the last one the
            smallest rate above `min_ratio`.
        total_steps: steps that the schedule covers.
        warmup_ratio: the warm-up is linear over ceil(warmup_ratio x total_steps) steps.
        from_zero: use the rate of the previous step, and 0 in the first step of a warm-up, as
            OpenChat did in 2023.
        schedule: course after the warm-up, down to `min_ratio`: cosine or linear decay; constant;
            or "wsd" (warm-up, stable, decay), constant with a linear decay at the end.
        min_ratio: rate at the end, as a share of the peak.
        decay_ratio: "wsd" decays over the last ceil(decay_ratio x total_steps) steps.
    """
    warmup = math.ceil(warmup_ratio * total_steps)
    if from_zero:
        step -= 1
    if step <= warmup:
        return step / warmup if warmup else 1.0
    decays_from = warmup
    if schedule == "wsd":
        decays_from = max(warmup, total_steps - math.ceil(decay_ratio * total_steps))
    if schedule == "constant" or step <= decays_from:
        return 1.0
    progress = (step - decays_from) / (total_steps - decays_from + (0 if from_zero else 1))
    cosine = schedule == "cosine"
    share = 0.5 * (1.0 + math.cos(math.pi * progress)) if cosine else 1.0 - progress
    return share if min_ratio == 0.0 else min_ratio + (1.0 - min_ratio) * share
