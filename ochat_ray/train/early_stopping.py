"""When a run ends before its last step, since the held-out loss falls no more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def held_out_losses(metrics: Sequence[Mapping[str, Any]], first: int, last: int) -> list[float]:
    """Return the held-out losses of the evaluations after steps `first` to `last`, in order."""
    evaluated = [m for m in metrics if "eval_loss" in m and first <= m["step"] <= last]
    return [float(m["eval_loss"]) for m in sorted(evaluated, key=lambda m: m["step"])]


def should_stop(losses: Sequence[float], patience: int | None) -> bool:
    """Return whether the last `patience` evaluations all were no better than one before them."""
    if patience is None or len(losses) <= patience:
        return False
    return min(losses[-patience:]) >= min(losses[:-patience])
