"""The learning rate over a run."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["cosine", "linear", "constant", "wsd"]

WSD_DECAY_RATIO = 0.1
"""Share of the steps in which `wsd` decays (Hu et al., 2024, "MiniCPM", arXiv:2404.06395)."""


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
    """The learning rate of a step, as a share of its peak.

    Linear warm-up over ceil(warmup_ratio x total_steps) steps, then as `schedule` names it, down
    to `min_ratio` of the peak: a cosine, a line, the peak throughout, or the peak until the last
    ceil(decay_ratio x total_steps) steps and then a line ("wsd": warm-up, stable, decay). `step`
    counts from 1; the first one learns already, and the last has the smallest rate above
    `min_ratio`. With `from_zero` every step has the rate of the one before it, and the first of a
    warm-up has 0, as in OpenChat of 2023.
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
