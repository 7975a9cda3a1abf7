"""Early stopping: the end of a run whose held-out loss no longer decreases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def held_out_losses(metrics: Sequence[Mapping[str, Any]], first: int, last: int) -> list[float]:
    """Return the held-out losses of the evaluations after steps `first` to `last`, in order."""
    evaluated = [m for m in metrics if "eval_loss" in m and first <= m["step"] <= last]
    return [float(m["eval_loss"]) for m in sorted(evaluated, key=lambda m: m["step"])]


def should_stop(losses: Sequence[float], patience: int | None) -> bool:
    """Return whether none of the last `patience` losses is below the minimum before them."""
    if patience is None or len(losses) <= patience:
        return False
    return min(losses[-patience:]) >= min(losses[:-patience])
