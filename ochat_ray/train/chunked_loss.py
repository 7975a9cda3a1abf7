"""Loss of a pack, computed in chunks of positions to avoid materializing all logits.

With a large vocabulary the logits are by far the largest tensor of a forward pass: 8,192 tokens
with 128,000 logits each take 4 GB in float32, and three times as much in the backward pass. Here
the output head computes the losses chunk by chunk, and the backward pass recomputes each chunk's
logits (similar to Liger's fused linear cross-entropy: Hsu et al., 2024, arXiv:2410.10989, which
computes gradients in the forward pass).

The forward method of the head's own module is replaced during the model's forward pass. So hooks
on the module still run: with ZeRO-3, DeepSpeed gathers the head's weight in one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from ochat_ray.train.batch import Batch, make_batch
from ochat_ray.train.forward import logits

CHUNK_LOGITS = 1 << 26
"""Logits per chunk, 256 MiB in float32; a pack with fewer is not split."""

_SENTINELS = (-48.0, 7.0, 40.0, -3.0, 0.5, 24.0, 1.0)
"""Logits that soft-capping or scaling would change; exact in bfloat16."""


def chunk_rows(vocabulary: int) -> int:
    """Return the positions per chunk."""
    return max(1, CHUNK_LOGITS // vocabulary)


def has_plain_head(model: Any) -> bool:
    """Return whether a model returns the output of its output head unchanged as logits.

    Runs the model on a few tokens with a head of known output, so all workers must call it with
    ZeRO-3. This finds models that cap or scale their logits, under any name of the option.
    """
    head = getattr(model, "module", model).get_output_embeddings()
    if type(head) is not torch.nn.Linear:
        return False
    count = len(_SENTINELS)
    seen: list[int] = []

    def known(hidden: torch.Tensor) -> torch.Tensor:
        seen.append(hidden.shape[1])
        return torch.tensor(_SENTINELS, device=hidden.device, dtype=hidden.dtype)[None, :, None]

    weights = np.ones(count + 1, np.float32)
    batch = make_batch([(np.zeros(count + 1, np.int64), weights)]).to(head.weight.device)
    with torch.no_grad(), _replaced(head, known):
        result = logits(model, batch)
    expected = torch.tensor(_SENTINELS, device=result.device)[:, None]
    return seen == [count] and torch.equal(result.float(), expected)


def chunked_nll(model: Any, batch: Batch, *, vocabulary: int | None = None) -> torch.Tensor:
    """Return `batch.weighted_nll` of a model with a plain head, chunk by chunk.

    Ids from `vocabulary` on belong to no token and are excluded.
    """
    head = getattr(model, "module", model).get_output_embeddings()

    def losses(hidden: torch.Tensor) -> torch.Tensor:
        rows = vocabulary or head.weight.shape[0]
        chunk = chunk_rows(rows)
        nll = _ChunkedNll.apply(hidden[0], head.weight, head.bias, batch.labels, rows, chunk)
        return nll[None, :, None]

    with _replaced(head, losses):
        nll = logits(model, batch)[:, 0]
    return (nll * batch.weights).sum()


@torch.no_grad()
def chunked_evaluation(
    model: Any, batch: Batch, id: int, *, vocabulary: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `batch.weighted_nll`, and for each position whether `id` has the highest logit."""
    head = getattr(model, "module", model).get_output_embeddings()

    def figures(hidden: torch.Tensor) -> torch.Tensor:
        rows = vocabulary or head.weight.shape[0]
        found = []
        for part in _parts(hidden.shape[1], chunk_rows(rows)):
            scores = _logits(hidden[0, part], head.weight, head.bias, rows)
            nll = functional.cross_entropy(scores, batch.labels[part], reduction="none")
            found.append(torch.stack([nll, (scores.argmax(-1) == id).float()], dim=-1))
        return torch.cat(found)[None]

    with _replaced(head, figures):
        nll, chosen = logits(model, batch).unbind(-1)
    return (nll * batch.weights).sum(), chosen > 0


class _ChunkedNll(torch.autograd.Function):
    """Negative log-likelihoods of labels (positions,), given hidden states and a head's weight.

    The backward pass recomputes each chunk's logits, and accumulates the weight's gradient in
    float32.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        rows: int,
        chunk: int,
    ) -> torch.Tensor:
        ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.rows, ctx.chunk = rows, chunk
        return torch.cat(
            [
                functional.cross_entropy(
                    _logits(hidden[part], weight, bias, rows), targets[part], reduction="none"
                )
                for part in _parts(len(hidden), chunk)
            ]
        )

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, bias, targets = ctx.saved_tensors
        of_hidden = torch.empty_like(hidden)
        trains_weight, trains_bias = ctx.needs_input_grad[1:3]
        of_weight = torch.zeros_like(weight, dtype=torch.float32) if trains_weight else None
        of_bias = torch.zeros_like(bias, dtype=torch.float32) if trains_bias else None
        for part in _parts(len(hidden), ctx.chunk):
            scores = _logits(hidden[part], weight, bias, ctx.rows)
            scores.sub_(scores.logsumexp(-1, keepdim=True)).exp_()
            scores[torch.arange(len(scores), device=scores.device), targets[part]] -= 1.0
            scores *= gradients[0][part, None]
            if of_bias is not None:
                of_bias[: ctx.rows] += scores.sum(0)
            error = scores.to(weight.dtype)
            del scores
            torch.mm(error, weight[: ctx.rows], out=of_hidden[part])
            if of_weight is None:
                continue
            if weight.dtype == torch.float32:
                of_weight[: ctx.rows].addmm_(error.T, hidden[part])
            else:
                of_weight[: ctx.rows] += error.T @ hidden[part]
        return (
            of_hidden,
            None if of_weight is None else of_weight.to(weight.dtype),
            None if of_bias is None else of_bias.to(bias.dtype),
            None,
            None,
            None,
        )


def _logits(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, rows: int
) -> torch.Tensor:
    # Without autograd, which would keep the chunks; returns a new float32 tensor.
    with torch.no_grad():
        scores = functional.linear(hidden, weight[:rows], None if bias is None else bias[:rows])
        return scores.float()


def _parts(count: int, chunk: int) -> Iterator[slice]:
    for start in range(0, count, chunk):
        yield slice(start, start + chunk)


@contextlib.contextmanager
def _replaced(module: torch.nn.Module, forward: Callable[..., torch.Tensor]) -> Iterator[None]:
    """Replace a module's forward method in the context."""
    before = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before
