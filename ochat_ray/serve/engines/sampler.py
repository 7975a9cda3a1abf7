"""Chooses the next token of every row of a batch, each by its own request's rules."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessor,
)
from transformers.generation.continuous_batching.requests import FutureRequestState

from ochat_ray.serve.engines.base import Sampling


def choose(scores: torch.Tensor, sampling: Sampling, *, seed: int, position: int) -> int:
    """One token id, drawn from the logits `scores` of shape [vocabulary].

    Order and meaning of the filters are transformers': temperature, then the `top_k` most
    likely, then the fewest of those whose probabilities sum to at least `top_p`. The draw
    depends on (seed, position) and the scores alone, so it is the same in any batch.
    """
    if sampling.greedy:
        return int(scores.argmax())
    scores = scores.float() / sampling.temperature
    ids = None
    if 0 < sampling.top_k < scores.numel():
        scores, ids = scores.topk(sampling.top_k)
    elif sampling.top_p < 1:
        scores, ids = scores.sort(descending=True)
    probabilities = scores.softmax(-1)
    if sampling.top_p < 1:
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities.masked_fill(before >= sampling.top_p, 0)
    # The exponential race: dividing by Exp(1) noise and taking the largest draws from the
    # (unnormalised) distribution.
    generator = torch.Generator(device=scores.device).manual_seed(_mix(seed, position))
    noise = torch.empty_like(probabilities).exponential_(generator=generator)
    index = (probabilities / noise).argmax()
    return int(index if ids is None else ids[index])


def _mix(seed: int, position: int) -> int:
    """A seed of its own for every position: SplitMix64's finaliser over both."""
    mask = 2**64 - 1
    value = (seed * 0x9E3779B97F4A7C15 + position * 0xD1B54A32D192ED03) & mask
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    return (value ^ (value >> 31)) - 2**63


class PerRequestSampler(ContinuousBatchingLogitsProcessor):
    """Gives the manager, which then takes the argmax, rows in which one token is left.

    transformers' own per-request processors sort the whole vocabulary twice for every row, cannot
    do temperature 0 or a seed, and leave ties of a greedy row to chance. Greedy rows pass as they
    are.

    A processor gets one int32 a row, which is not enough for a request's rules; they are kept
    from `prepare_tensor_args`, which the manager's thread calls right before the forward pass.
    That holds without async batching and CUDA graphs, so the engine turns both off.
    """

    supported_kwargs = {"sampling": Sampling, "seed": int}  # noqa: RUF012 - the base class's
    ignored_kwargs = ()

    def __init__(self) -> None:
        self._rows: list[tuple[Sampling, int, int]] = []

    def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
        """Nothing is read from the tensor."""
        int32_tensor.zero_()

    def prepare_tensor_args(
        self, requests_with_new_token: Sequence[FutureRequestState]
    ) -> torch.Tensor:
        """Remember whose rows come next."""
        self._rows = []
        for request in requests_with_new_token:
            state, rules = request.state, request.state.logit_processor_kwargs
            # Unlike the count of generated tokens, this survives the manager's taking a request
            # out of a full cache and starting it again with its answer so far as prompt.
            position = len(state.initial_tokens) + len(state.generated_tokens)
            self._rows.append((rules["sampling"], rules["seed"], position))
        return torch.zeros(len(self._rows), dtype=torch.int32)

    def __call__(  # type: ignore[override]  # the base class means any float tensor
        self,
        scores: torch.Tensor,
        tensor_arg: torch.Tensor,  # noqa: ARG002
    ) -> torch.Tensor:
        """Logits of shape [rows, vocabulary] in, and out with the draws made."""
        # A prompt that is read in several passes has a row too, after all others and unread.
        assert len(self._rows) <= len(scores), "rows of another batch"
        for row, (sampling, seed, position) in zip(scores, self._rows, strict=False):
            if not sampling.greedy:
                token_id = choose(row, sampling, seed=seed, position=position)
                row.fill_(-torch.inf)
                row[token_id] = 0
        return scores
