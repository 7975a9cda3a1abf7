"""Bradley-Terry strengths of models from comparisons of two, with style as an optional control.

The probability that a model wins is the logistic function of the difference in strength. A tie is
half a win. Strengths are in Elo points: 400 points are odds of ten to one.

Source: Bradley and Terry (1952); Chiang et al., "Chatbot Arena" (2024), for the use on models;
lmarena/arena-hard-auto, for style as differences of counts, each divided by its sum.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

ROUNDS = 500
POINTS = 400 / math.log(10)
BASE = 1000.0
PENALTY = 1e-3
"""Weight of the squared coefficients: a model that wins everything has a finite strength."""

STYLE = ("length", "headers", "lists", "bold")

_FENCED = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_COUNTED = (
    re.compile(r"^#{1,6}\s", re.MULTILINE),
    re.compile(r"^\s*(?:[-*+]|\d+\.)\s", re.MULTILINE),
    re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Battle:
    """Comparison of two models' answers to one question.

    Attributes:
        question: The question's id; comparisons of one question are resampled together.
        first: A model.
        second: Another model.
        share: Share of the win of `first`: 1 a win, 0.5 a tie, 0 a loss.
        votes: Weight of the comparison.
        style: Differences in style, `first` minus `second`.
    """

    question: str
    first: str
    second: str
    share: float
    votes: float = 1.0
    style: tuple[float, ...] = field(default=())


def style_of(text: str) -> tuple[int, ...]:
    """Count characters, headers, list items and bold passages of Markdown; see `STYLE`."""
    plain = _FENCED.sub("", text)
    return (len(text), *(len(pattern.findall(plain)) for pattern in _COUNTED))


def style_difference(first: str, second: str) -> tuple[float, ...]:
    """Return the difference of each count of `style_of`, divided by the sum; 0 without any."""
    return tuple(
        (a - b) / (a + b) if a + b else 0.0
        for a, b in zip(style_of(first), style_of(second), strict=True)
    )


def bradley_terry(
    battles: Sequence[Battle], *, anchor: str | None = None, seed: int, rounds: int = ROUNDS
) -> dict[str, Any] | None:
    """Return the models' strengths with 95% intervals, best first; None without battles.

    Args:
        battles: All comparisons. Models that no chain of comparisons connects to the anchor are
            not comparable and are left out; they are listed as `not_connected`.
        anchor: Model with a strength of 1000; default: the one with the most comparisons.
        seed: Seed of the bootstrap over questions.
        rounds: Rounds of the bootstrap.

    Returns:
        `ratings`, a list of model, score, low and high; `style`, the coefficients of the features
        in units of their standard deviation, if the battles have any; `anchor`; `not_connected`.
    """
    if not battles:
        return None
    names = [name for one in battles for name in (one.first, one.second)]
    anchor = anchor if anchor in names else max(sorted(set(names)), key=names.count)
    connected = _connected(battles, anchor)
    battles = [one for one in battles if one.first in connected]
    models = sorted(connected - {anchor})
    columns = {name: number for number, name in enumerate(models)}
    design, shares, weights = _rows(battles, columns)
    questions = len(weights)
    best = _fit(design, *_totals(shares, weights, np.ones(questions)))
    generator = np.random.default_rng(seed)
    even = np.full(questions, 1 / questions)
    samples = np.array(
        [
            _fit(design, *_totals(shares, weights, generator.multinomial(questions, even)), best)
            for _ in range(rounds)
        ]
    )
    low, high = np.percentile(samples, [2.5, 97.5], axis=0)
    rated = [
        {
            "model": name,
            "score": BASE + POINTS * float(best[number]),
            "low": BASE + POINTS * float(low[number]),
            "high": BASE + POINTS * float(high[number]),
        }
        for name, number in columns.items()
    ]
    rated.append({"model": anchor, "score": BASE, "low": BASE, "high": BASE})
    style = {
        name: {"score": float(best[i]), "low": float(low[i]), "high": float(high[i])}
        for i, name in enumerate(STYLE, len(models))
        if i < len(best) and len({one.style[i - len(models)] for one in battles}) > 1
    }
    return {
        "anchor": anchor,
        "ratings": sorted(rated, key=lambda one: -one["score"]),
        "style": style,
        "not_connected": sorted(set(names) - connected),
    }


def _connected(battles: Sequence[Battle], anchor: str) -> set[str]:
    known, before = {anchor}, 0
    while len(known) > before:
        before = len(known)
        for one in battles:
            if one.first in known or one.second in known:
                known |= {one.first, one.second}
    return known


def _rows(
    battles: Sequence[Battle], columns: Mapping[str, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the distinct rows of the design, and won and all votes by question and row."""
    features = np.array([one.style for one in battles], np.float64)
    spread = features.std(axis=0)
    features = features / np.where(spread > 0, spread, 1)
    number_of: dict[tuple[Any, ...], int] = {}
    questions = {one.question: n for n, one in enumerate({b.question: b for b in battles}.values())}
    entries = []
    for one, own in zip(battles, features, strict=True):
        row = number_of.setdefault((one.first, one.second, *own), len(number_of))
        entries.append((questions[one.question], row, one.share * one.votes, one.votes))
    design = np.zeros((len(number_of), len(columns) + features.shape[1]))
    for (first, second, *own), row in number_of.items():
        if first in columns:
            design[row, columns[first]] += 1
        if second in columns:
            design[row, columns[second]] -= 1
        design[row, len(columns) :] = own
    won, votes = np.zeros((2, len(questions), len(number_of)))
    for question, row, wins, weight in entries:
        won[question, row] += wins
        votes[question, row] += weight
    return design, won, votes


def _totals(won: np.ndarray, votes: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return times @ won, times @ votes


def _fit(
    design: np.ndarray, won: np.ndarray, votes: np.ndarray, start: np.ndarray | None = None
) -> np.ndarray:
    """Maximize the penalized likelihood by Newton's method."""
    x = np.zeros(design.shape[1]) if start is None else start.copy()
    for _ in range(100):
        expected = 1 / (1 + np.exp(-design @ x))
        gradient = design.T @ (won - votes * expected) - PENALTY * x
        curvature = (design.T * (votes * expected * (1 - expected))) @ design
        curvature[np.diag_indices_from(curvature)] += PENALTY
        step = np.linalg.solve(curvature, gradient)
        step *= min(1.0, 2 / max(np.abs(step).max(initial=0), 1e-300))  # at most 2, for stability
        x += step
        if np.abs(step).max(initial=0) < 1e-9:
            break
    return x
