"""The learning rate over a run."""

from __future__ import annotations

import math


def rate(step: int, *, total_steps: int, warmup_ratio: float, from_zero: bool = False) -> float:
    """The learning rate of a step, as a share of its peak.

    Linear warm-up over ceil(warmup_ratio x total_steps) steps, then a cosine to 0. `step` counts
    from 1; the first one learns already, and the last has the smallest rate that is not 0. With
    `from_zero` every step has the rate of the one before it, and the first has 0, as in OpenChat
    of 2023.
    """
    warmup = math.ceil(warmup_ratio * total_steps)
    if from_zero:
        step -= 1
    if step <= warmup:
        return step / warmup if warmup else 1.0
    progress = (step - warmup) / (total_steps - warmup + (0 if from_zero else 1))
    return 0.5 * (1.0 + math.cos(math.pi * progress))
