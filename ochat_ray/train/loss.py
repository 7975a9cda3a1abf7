"""Normalization of the loss over an optimizer step, and checks that losses are finite."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import islice
from typing import Literal

from ochat_ray.errors import UserError

Loss = Literal["exact", "openchat-2023"]


class NonFiniteLossError(UserError):
    """Error for a loss or gradient norm that is not finite; names the step and conversations."""


def check_finite(step: int, loss: float, grad_norm: float, conversations: Iterable[str]) -> None:
    """Raise a NonFiniteLossError if a step's loss or gradient norm is not finite.

    `conversations` are the ids of the step's conversations.
    """
    if math.isfinite(loss) and math.isfinite(grad_norm):
        return
    ids = list(islice(conversations, 9))
    raise NonFiniteLossError(
        f"step {step}: loss {loss}, gradient norm {grad_norm}; conversations "
        f"{', '.join(ids[:8])}{', …' if len(ids) > 8 else ''}; inspect them, or lower "
        "--learning-rate"
    )


def check_held_out(step: int, loss: float, weight: float) -> None:
    """Check a held-out loss after a step, before a checkpoint of that step is written.

    Raises:
        UserError: it is not finite, or no token has a weight.
    """
    if not weight:
        raise UserError(
            "no token of the held-out conversations that --eval-tokens takes has a loss weight; "
            "give more --eval-tokens"
        )
    if not math.isfinite(loss):
        advice = (
            "lower --learning-rate"
            if step
            else "weights of the base model, or their sums, are not; check its files, or give "
            "--dtype float32"
        )
        raise NonFiniteLossError(f"the held-out loss after step {step} is {loss}; {advice}")


def pack_scales(weights: list[list[float]], kind: Loss = "exact") -> list[list[float]]:
    """Return the factor of each pack's sum of weight x nll, for `Engine.step`.

    A step without any weight has a loss and a gradient of 0.

    Args:
        weights: sum of the loss weights of each pack, as weights[rank][pack].
        kind: "exact" divides by the weight of the step, so that every weighted token counts the
            same in every pack. "openchat-2023" is the mean of the packs' means, as OpenChat's
            trainer of July 2023 averaged its micro-batches; packs without weight do not count.
    """
    if kind == "openchat-2023":
        counted = sum(weight > 0 for packs in weights for weight in packs)
        return [[1.0 / (w * counted) if w else 0.0 for w in packs] for packs in weights]
    total = sum(weight for packs in weights for weight in packs)
    return [[1.0 / total if total else 0.0 for _ in packs] for packs in weights]
