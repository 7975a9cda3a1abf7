"""How sure is a score: paired bootstrap over questions, and the biases of a judge.

Every score here is a ratio of sums over questions, so one resampling serves all: Vicuna's is the
model's scores over the baseline's, a mean has the counts below it.

Source: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), the percentile interval.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

ROUNDS = 10_000
_CHUNK = 500


@dataclass(frozen=True, slots=True)
class Part:
    """What one question adds above and below the line; (0, 0) where it was not judged."""

    numerator: float
    denominator: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """A score and its 95% interval."""

    value: float
    low: float
    high: float


def estimate(parts: Sequence[Part], *, seed: int, rounds: int = ROUNDS) -> Estimate | None:
    """The score of these questions; None where nothing was judged."""
    own = _array(parts)
    if not own[1].sum():
        return None
    samples = np.concatenate([_ratio(own, w) for w in _weights(len(parts), seed, rounds)])
    return _interval(float(_ratio(own, np.ones((1, len(parts))))[0]), samples)


def difference(
    first: Sequence[Part], second: Sequence[Part], *, seed: int, rounds: int = ROUNDS
) -> Estimate | None:
    """The first score minus the second, on the same questions in the same order.

    The questions are drawn once for both: what is hard for both does not widen the interval.
    """
    one, other = _array(first), _array(second)
    assert one.shape == other.shape, "scores of different questions"
    if not one[1].sum() or not other[1].sum():
        return None
    whole = np.ones((1, len(first)))
    samples = np.concatenate(
        [_ratio(one, w) - _ratio(other, w) for w in _weights(len(first), seed, rounds)]
    )
    return _interval(float((_ratio(one, whole) - _ratio(other, whole))[0]), samples)


def _array(parts: Sequence[Part]) -> np.ndarray:
    return np.array([(p.numerator, p.denominator) for p in parts], dtype=np.float64).T


def _weights(count: int, seed: int, rounds: int) -> Iterator[np.ndarray]:
    """How often each question is drawn, a row a round; in pieces that fit into memory."""
    generator = np.random.default_rng(seed)
    even = np.full(count, 1 / count)
    for done in range(0, rounds, _CHUNK):
        yield generator.multinomial(count, even, min(_CHUNK, rounds - done))


def _ratio(parts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    above, below = weights @ parts[0], weights @ parts[1]
    # A draw of nothing but questions that were not judged says nothing.
    return np.divide(above, below, out=np.full(len(below), np.nan), where=below != 0)


def _interval(value: float, samples: np.ndarray) -> Estimate:
    low, high = np.nanpercentile(samples, [2.5, 97.5])
    return Estimate(value, float(low), float(high))
