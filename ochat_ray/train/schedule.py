"""The learning rate of a step."""

from __future__ import annotations

import math


def learning_rate(step: int, *, total_steps: int, warmup_ratio: float, peak: float) -> float:
    """Linear warm-up over ceil(ratio x steps) steps, then cosine to 0.

    `step` counts from 1; the first one already learns, and the last has the smallest rate above 0.
    """
    warmup = math.ceil(warmup_ratio * total_steps)
    if step <= warmup:
        return peak * step / warmup
    progress = (step - warmup) / (total_steps - warmup + 1)
    return peak * 0.5 * (1.0 + math.cos(math.pi * progress))
