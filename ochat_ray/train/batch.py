"""A pack of conversations as the tensors of one forward pass, and its loss.

Source of the isolation rule: transformers 5 detects a packed sequence by position ids that start
again, and only where there is neither an attention mask nor a cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """One pack. All tensors are of shape (1, tokens); `weights` is float32.

    `targets[0, i]` is the token after `input_ids[0, i]` in the same conversation; at a
    conversation's last token there is none, and the weight is 0.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        """The same pack on another device."""
        return Batch(
            input_ids=self.input_ids.to(device, non_blocking=True),
            position_ids=self.position_ids.to(device, non_blocking=True),
            targets=self.targets.to(device, non_blocking=True),
            weights=self.weights.to(device, non_blocking=True),
        )


def make_batch(conversations: Sequence[tuple[np.ndarray, np.ndarray]]) -> Batch:
    """A pack of (input ids, loss weights).

    An empty pack becomes one token of weight 0: it adds nothing to the loss, and its worker still
    takes part in every collective operation of the step.
    """
    if not conversations:
        conversations = [(np.zeros(1, np.int64), np.zeros(1, np.float32))]
    ids = np.concatenate([ids for ids, _ in conversations]).astype(np.int64)
    positions = np.concatenate([np.arange(len(ids)) for ids, _ in conversations])
    weights = np.concatenate([np.append(w[1:], 0.0) for _, w in conversations]).astype(np.float32)
    targets = np.append(ids[1:], 0)
    return Batch(
        input_ids=torch.from_numpy(ids)[None],
        position_ids=torch.from_numpy(positions)[None],
        targets=torch.from_numpy(targets)[None],
        weights=torch.from_numpy(weights)[None],
    )


def trained_weight(weights: np.ndarray) -> float:
    """Sum of the weights that enter the loss: a conversation's first token is never a target."""
    return float(weights[1:].sum(dtype=np.float64))


def weighted_nll(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Sum over tokens of weight x negative log-likelihood, a float32 scalar.

    Not a mean: the caller divides by the weight of the whole step, over all packs and workers.
    """
    nll = functional.cross_entropy(logits[0].float(), batch.targets[0], reduction="none")
    return (nll * batch.weights[0]).sum()
