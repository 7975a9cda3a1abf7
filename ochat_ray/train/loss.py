"""How much each pack's sum of weight x nll counts in an optimizer step."""

from __future__ import annotations

from typing import Literal

from ochat_ray.errors import UserError

Loss = Literal["exact", "openchat-2023"]


class NonFiniteLossError(UserError):
    """The loss or the gradient's norm is not a number; names the step and its conversations."""


def pack_scales(weights: list[list[float]], kind: Loss = "exact") -> list[list[float]]:
    """The factor of each pack's sum, as `Engine.step` takes it.

    Args:
        weights: the sum of the loss weights of each pack, as weights[rank][pack].
        kind: "exact" divides by the weight of the whole step, so that every weighted token counts
            the same wherever it was packed. "openchat-2023" is the mean of the packs' own means,
            as OpenChat's trainer of July 2023 averaged its micro-batches; packs without weight do
            not count.

    A step without any weight has a loss and a gradient of 0.
    """
    if kind == "openchat-2023":
        counted = sum(weight > 0 for packs in weights for weight in packs)
        return [[1.0 / (w * counted) if w else 0.0 for w in packs] for packs in weights]
    whole = sum(weight for packs in weights for weight in packs)
    return [[1.0 / whole if whole else 0.0 for _ in packs] for packs in weights]
