"""Confidence intervals of scores and differences: a paired bootstrap over questions.

Every score is a ratio of sums over questions, so one resampling serves all: Vicuna's is the model's
scores over the baseline's; a mean has counts in the denominator.

Source: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), the percentile interval.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

ROUNDS = 10_000
_CHUNK = 500


@dataclass(frozen=True, slots=True)
class Part:
    """Contribution of one question to numerator and denominator; (0, 0) if it was not judged."""

    numerator: float
    denominator: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """Score and its 95% confidence interval."""

    value: float
    low: float
    high: float


def estimate(parts: Sequence[Part], *, seed: int, rounds: int = ROUNDS) -> Estimate | None:
    """Estimate the score of these questions; None if nothing was judged."""
    own = _array(parts)
    if not own[1].sum():
        return None
    samples = np.concatenate([_ratio(own, w) for w in _weights(len(parts), seed, rounds)])
    return _interval(float(_ratio(own, np.ones((1, len(parts))))[0]), samples)


def difference(
    first: Sequence[Part], second: Sequence[Part], *, seed: int, rounds: int = ROUNDS
) -> Estimate | None:
    """Estimate the first score minus the second, on the same questions in the same order.

    Questions are resampled jointly, so difficulty shared by both does not widen the interval.
    """
    return differences([first, second], seed=seed, rounds=rounds)[0, 1]


def differences(
    scores: Sequence[Sequence[Part]], *, seed: int, rounds: int = ROUNDS
) -> dict[tuple[int, int], Estimate | None]:
    """Estimate the difference of each two scores, by their positions; see `difference`."""
    own = [_array(parts) for parts in scores]
    assert len({one.shape for one in own}) <= 1, "scores of different questions"
    judged = [number for number, one in enumerate(own) if one[1].sum()]
    samples: dict[int, list[np.ndarray]] = {number: [] for number in judged}
    if len(judged) > 1:
        for weights in _weights(own[0].shape[1], seed, rounds):
            for number in judged:
                samples[number].append(_ratio(own[number], weights))
    resampled = {number: np.concatenate(found) for number, found in samples.items() if found}
    found: dict[tuple[int, int], Estimate | None] = {}
    for one, other in combinations(range(len(own)), 2):
        found[one, other] = None
        if one in resampled and other in resampled:
            value = (
                own[one][0].sum() / own[one][1].sum() - own[other][0].sum() / own[other][1].sum()
            )
            found[one, other] = _interval(value, resampled[one] - resampled[other])
    return found


def _array(parts: Sequence[Part]) -> np.ndarray:
    return np.array([(p.numerator, p.denominator) for p in parts], dtype=np.float64).T


def _weights(count: int, seed: int, rounds: int) -> Iterator[np.ndarray]:
    """Yield how often each question is drawn, one row per round, in chunks that fit into memory."""
    generator = np.random.default_rng(seed)
    even = np.full(count, 1 / count)
    for done in range(0, rounds, _CHUNK):
        yield generator.multinomial(count, even, min(_CHUNK, rounds - done))


def _ratio(parts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    above, below = weights @ parts[0], weights @ parts[1]
    # A resample that contains only unjudged questions has no ratio.
    return np.divide(above, below, out=np.full(len(below), np.nan), where=below != 0)


def _interval(value: float, samples: np.ndarray) -> Estimate:
    low, high = np.nanpercentile(samples, [2.5, 97.5])
    return Estimate(value, float(low), float(high))
