"""Tensors of a pack of conversations for one forward pass, and the loss.

How conversations are kept apart: transformers 5 detects a packed sequence by position ids that
restart, if there is neither an attention mask nor a cache. flash-attn gets `cu_seqlens`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Tensors of a pack.

    Attributes:
        input_ids: shape (1, tokens).
        position_ids: shape (1, tokens); they restart with each conversation.
        cu_seqlens: cumulative lengths of the conversations in tokens, from 0; int32 of shape
            (conversations + 1,).
        label_positions: positions whose next token has a weight, shape (labels,); logits at other
            positions are never computed.
        labels: ids of these next tokens, shape (labels,).
        weights: their loss weights, float32 of shape (labels,).
        max_seqlen: length of the longest conversation in tokens.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    cu_seqlens: torch.Tensor
    label_positions: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    max_seqlen: int

    def to(self, device: torch.device) -> Batch:
        """Return the pack on another device."""
        return Batch(
            input_ids=self.input_ids.to(device, non_blocking=True),
            position_ids=self.position_ids.to(device, non_blocking=True),
            cu_seqlens=self.cu_seqlens.to(device, non_blocking=True),
            label_positions=self.label_positions.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            weights=self.weights.to(device, non_blocking=True),
            max_seqlen=self.max_seqlen,
        )


def make_batch(conversations: Sequence[tuple[np.ndarray, np.ndarray]]) -> Batch:
    """Return the pack of conversations, given as (input ids, loss weights) of the same length.

    A conversation's first token is never a label. An empty pack becomes one token, and a pack
    without weight gets one label of weight 0: it adds nothing to the loss, and its worker still
    takes part in every collective operation.
    """
    if not conversations:
        conversations = [(np.zeros(1, np.int64), np.zeros(1, np.float32))]
    lengths = [len(ids) for ids, _ in conversations]
    ids = np.concatenate([ids for ids, _ in conversations]).astype(np.int64)
    following = np.concatenate([np.append(w[1:], 0.0) for _, w in conversations])
    label_positions = np.flatnonzero(following)
    if not label_positions.size:
        label_positions = np.zeros(1, np.int64)
    return Batch(
        input_ids=torch.from_numpy(ids)[None],
        position_ids=torch.from_numpy(np.concatenate([np.arange(n) for n in lengths]))[None],
        cu_seqlens=torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int32)),
        label_positions=torch.from_numpy(label_positions),
        labels=torch.from_numpy(np.append(ids[1:], 0)[label_positions]),
        weights=torch.from_numpy(following[label_positions].astype(np.float32)),
        max_seqlen=max(lengths),
    )


def trained_weight(weights: np.ndarray) -> float:
    """Return the sum of a conversation's weights in the loss; its first token is never a label."""
    return float(weights[1:].sum(dtype=np.float64))


def weighted_nll(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Return the sum over a pack of weight x negative log-likelihood, a float32 scalar.

    `logits` has shape (labels, vocabulary). This is not a mean: the caller divides by the weight
    of the step, over all packs and workers.
    """
    nll = functional.cross_entropy(logits.float(), batch.labels, reduction="none")
    return (nll * batch.weights).sum()
