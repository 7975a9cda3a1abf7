"""Sample a request's next token from its row of logits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from ochat_ray.serve.engines.base import Sampling, TokenLogprobs

UNLIKELY = 1e-4
"""Probability below which tokens are sampled as one group; see `choose`."""


def adjust(
    scores: torch.Tensor,
    sampling: Sampling,
    *,
    prompt_ids: torch.Tensor,
    answer_counts: Mapping[int, int],
    allowed: np.ndarray | None = None,
    banned: Sequence[int] = (),
) -> None:
    """Apply the rules that depend on the text so far, in place: bias, bans, grammar, penalties.

    Args:
        scores: Float32 logits, [vocabulary].
        sampling: The request's parameters.
        prompt_ids: Distinct token ids of the prompt.
        answer_counts: Number of occurrences of each id in the answer so far.
        allowed: Mask of allowed ids, [vocabulary].
        banned: Ids that are not possible.
    """
    if sampling.logit_bias:
        ids, biases = zip(*sampling.logit_bias, strict=True)
        bias = torch.tensor(biases, dtype=scores.dtype, device=scores.device)
        scores.index_add_(0, torch.tensor(ids, device=scores.device), bias)
    if allowed is not None:
        scores.masked_fill_(torch.from_numpy(~allowed).to(scores.device), -torch.inf)
    if banned:
        scores[torch.tensor(banned, device=scores.device)] = -torch.inf
    answer_ids = torch.tensor(list(answer_counts), dtype=torch.long, device=scores.device)
    if sampling.repetition_penalty != 1:
        seen = torch.cat([prompt_ids.to(scores.device), answer_ids]).unique()
        penalty, before = sampling.repetition_penalty, scores[seen]
        scores[seen] = torch.where(before > 0, before / penalty, before * penalty)
    if answer_counts and (sampling.presence_penalty or sampling.frequency_penalty):
        counts = torch.tensor(list(answer_counts.values()), device=scores.device)
        scores[answer_ids] -= sampling.frequency_penalty * counts + sampling.presence_penalty


def choose(scores: torch.Tensor, sampling: Sampling, *, seed: int, position: int) -> int:
    """Sample one token id from the logits `scores` of shape [vocabulary].

    The filters are temperature, `min_p`, the `top_k` most likely tokens, then the smallest set of
    those whose probabilities sum to at least `top_p`. The result depends only on (seed, position)
    and the scores, so it is the same in any batch.

    Sampling is an exponential race: each token's exponential noise, divided by its probability, is
    its arrival time, and the first to arrive is drawn with exactly that probability. Every id has
    its own noise, so a draw is stable under the small differences in logits between batches.

    Raises:
        ValueError: No token is possible, or the logits are NaN.
    """
    if not math.isfinite(scores.max()):
        raise ValueError("the model's logits are not numbers, or no token is possible")
    if sampling.greedy:
        return int(scores.argmax())
    scores = scores.float() / sampling.temperature
    if sampling.min_p > 0:
        scores = scores.masked_fill(scores < scores.max() + math.log(sampling.min_p), -torch.inf)
    key = _mix(seed, position)
    if 0 < sampling.top_k < scores.numel():
        scores, ids = scores.topk(sampling.top_k)
        probabilities = scores.softmax(-1)
        kept = _within(probabilities, sampling.top_p)
        return _first(_array(probabilities[kept]), _array(ids[kept]), key)
    likely_first = scores.softmax(-1)
    if sampling.top_p < 1:
        for width in (256, 4096, scores.numel()):  # nearly always 256, and sorting all is slow
            probabilities, ids = likely_first.topk(min(width, scores.numel()))
            kept = _within(probabilities, sampling.top_p)
            if not kept[-1]:
                break
        return _first(_array(probabilities[kept]), _array(ids[kept]), key)
    # Most of a vocabulary is so unlikely that it hardly ever wins. These tokens race as one group,
    # and among each other only if the group wins: the same distribution with less noise to draw.
    everything = _array(likely_first)
    likely = everything >= UNLIKELY
    common, rare = np.flatnonzero(likely), np.flatnonzero(~likely)
    rest, all_rare = everything[rare].sum(), everything.size
    winner = _first(np.append(everything[common], rest), np.append(common, all_rare), key)
    return _first(everything[rare], rare, key) if winner == all_rare else winner


def log_probabilities(logs: torch.Tensor, token_id: int, top: int) -> TokenLogprobs:
    """Return the entry of the chosen token and the `top` highest of `logs`, [vocabulary]."""
    values, ids = logs.topk(min(top, logs.numel()))
    return TokenLogprobs(
        token_id=token_id,
        logprob=float(logs[token_id]),
        top=tuple(zip(ids.tolist(), values.tolist(), strict=True)),
    )


def _within(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """Return a mask of the probabilities, sorted descending, needed to sum to at least `top_p`."""
    return probabilities.cumsum(-1) - probabilities < top_p


def _array(tensor: torch.Tensor) -> np.ndarray:
    array: np.ndarray = tensor.cpu().numpy()
    return array


def _first(probabilities: np.ndarray, ids: np.ndarray, key: int) -> int:
    return int(ids[(probabilities / _exponentials(key, ids)).argmax()])


def _exponentials(key: int, ids: np.ndarray) -> np.ndarray:
    """Return exponential noise with mean 1: SplitMix64's stream `key` at positions `ids`."""
    value = np.uint64(key) + (ids.astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(_FIRST)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(_SECOND)
    value ^= value >> np.uint64(31)
    # 52.5 bits: neither 0 nor 1 after rounding.
    uniform = ((value >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    return -np.log(uniform)


def _mix(seed: int, position: int) -> int:
    """Return a separate stream key for every position: SplitMix64's finalizer over both values."""
    mask = 2**64 - 1
    value = (seed * _GOLDEN + position * 0xD1B54A32D192ED03) & mask
    value = ((value ^ (value >> 30)) * _FIRST) & mask
    value = ((value ^ (value >> 27)) * _SECOND) & mask
    return value ^ (value >> 31)


_GOLDEN = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB
