"""AlpacaEval 2's length-controlled win rate: the win rate if both outputs had the same length.

A logistic regression predicts each preference from the difference in length, the difficulty of the
instruction and a constant; the win rate is its mean prediction without the first term.

Source: Dubois et al., "Length-Controlled AlpacaEval" (2024), and tatsu-lab/alpaca_eval 0.6.6,
metrics/glm_winrate.py: features, weights, and scikit-learn's L1-penalized logistic regression with
five-fold cross-validation of the penalty.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ochat_ray.errors import UserError

LEADERBOARD_MODEL = "length_controlled_v1"
MINIMAL_MODEL = "length_only"

FOLDS = 5
INVERSE_PENALTIES = np.logspace(-4, 4, 10)
REGULARIZATION = 0.2
"""Weight of the two manipulated models' annotations in the fit, together."""

_COLUMNS = ("index", "preference", "instruction_difficulty", "std_delta_len", "not_gamed_baseline")


@dataclass(frozen=True, kw_only=True, slots=True)
class Difficulty:
    """Contents of alpaca_eval's df_gamed.csv.

    Attributes:
        by_index: Difficulty of each instruction, by its position in the question set.
        features: Features of the manipulated models' annotations, of shape (rows, 3).
        preferences: Their preferences, 0 to 1.
    """

    by_index: dict[int, float]
    features: np.ndarray
    preferences: np.ndarray


def read_difficulty(path: str) -> Difficulty:
    """Read df_gamed.csv of the data set tatsu-lab/alpaca_eval.

    Raises:
        UserError: The file cannot be read or is not of this form.
    """
    by_index: dict[int, float] = {}
    features, preferences = [], []
    try:
        with open(path, encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):
                index, preference, difficulty, length = (float(row[name]) for name in _COLUMNS[:4])
                constant = {"True": 1.0, "False": 0.0}[row["not_gamed_baseline"]]
                by_index.setdefault(int(index), difficulty)
                if not math.isnan(preference):
                    features.append((math.tanh(length), difficulty, constant))
                    preferences.append(preference)
    except (OSError, ValueError, TypeError, KeyError, csv.Error) as error:
        raise UserError(
            f"--difficulty {path}: {type(error).__name__} {error}; give df_gamed.csv of the data "
            f"set tatsu-lab/alpaca_eval, with the columns {', '.join(_COLUMNS)}"
        ) from error
    if not features:
        raise UserError(f"--difficulty {path}: no rows; give df_gamed.csv of tatsu-lab/alpaca_eval")
    return Difficulty(
        by_index=by_index, features=np.array(features), preferences=np.array(preferences)
    )


def length_controlled(
    preferences: Sequence[float | None],
    lengths: Sequence[tuple[int, int]],
    difficulty: Difficulty | None = None,
    indices: Iterable[int] = (),
) -> dict[str, Any]:
    """Return the length-controlled win rate against the baseline, in percent.

    Args:
        preferences: One per question, 1 (baseline) to 2 (model); None if it was not judged.
        lengths: Characters of the baseline's and of the model's output.
        difficulty: Difficulty of the instructions, for the published model
            ("length_controlled_v1"); without it the model has no such term
            ("length_only"), and its rates are not those of the leaderboard.
        indices: Positions of the questions in alpaca_eval's set, with `difficulty`.

    Returns:
        Entries of results.json. The rate is None for fewer than five preferences.

    Raises:
        UserError: A question has no difficulty.
    """
    name = LEADERBOARD_MODEL if difficulty else MINIMAL_MODEL
    shares = np.array([np.nan if p is None else (p or 1.5) - 1 for p in preferences], np.float64)
    shares[~((shares >= 0) & (shares <= 1))] = np.nan
    known = ~np.isnan(shares)
    if known.sum() < FOLDS:
        return {"length_controlled_winrate": None, "lc_standard_error": None, "lc_model": name}
    features = np.ones((len(shares), 3 if difficulty else 2))
    features[:, 0] = _length_feature(lengths)
    rows, targets, weights = features[known], shares[known], np.ones(known.sum())
    if difficulty:
        features[:, 1] = _difficulties(difficulty, indices)
        rows = np.concatenate([difficulty.features, features[known]])
        targets = np.concatenate([difficulty.preferences, targets])
        # Half for each of the two manipulated models.
        manipulated = np.full(len(difficulty.features), REGULARIZATION / 2)
        manipulated[difficulty.features[:, 2] == 1] = 1
        weights = np.concatenate([manipulated, weights])
    # The published model shrinks the constant, too. With the length alone, that would draw the rate
    # of a few questions to 50, whatever the lengths.
    penalties = np.array([1.0, 1.0, 1.0] if difficulty else [1.0, 0.0])
    coefficients = _fit_best(rows, targets, weights, penalties)
    features[:, 0] = 0
    predicted = 100 * _logistic(features @ coefficients)
    error = float(predicted.std(ddof=1) / math.sqrt(len(predicted)))
    return {
        "length_controlled_winrate": float(predicted.mean()),
        # Without difficulties all predictions are equal.
        "lc_standard_error": error if difficulty else None,
        "lc_model": name,
        "lc_length_coefficient": float(coefficients[0]),
    }


def _length_feature(lengths: Sequence[tuple[int, int]]) -> np.ndarray:
    delta = np.array([baseline - model for baseline, model in lengths], np.float64)
    spread = delta.std(ddof=1)
    return np.tanh(delta / spread) if spread else np.zeros(len(delta))


def _difficulties(difficulty: Difficulty, indices: Iterable[int]) -> list[float]:
    try:
        return [difficulty.by_index[index] for index in indices]
    except KeyError as error:
        raise UserError(
            f"--difficulty has no instruction {error}; it is for alpaca_eval's own "
            f"{len(difficulty.by_index)} questions, in their order"
        ) from error


def _fit_best(
    features: np.ndarray, targets: np.ndarray, weights: np.ndarray, penalties: np.ndarray
) -> np.ndarray:
    """Return the coefficients for the penalty with the least loss on held-out rows."""
    # scikit-learn's GroupKFold on groups of equal size: in turn, from the last row.
    fold = (len(targets) - 1 - np.arange(len(targets))) % FOLDS
    losses = np.zeros(len(INVERSE_PENALTIES))
    for held_out in (fold == number for number in range(FOLDS)):
        used = ~held_out
        start = np.zeros(features.shape[1])
        for number, inverse in enumerate(INVERSE_PENALTIES):
            start = _fit(features[used], targets[used], inverse * weights[used], penalties, start)
            loss = _losses(features[held_out] @ start, targets[held_out])
            losses[number] += (weights[held_out] * loss).mean()
    best = INVERSE_PENALTIES[int(losses.argmin())]
    return _fit(features, targets, best * weights, penalties, np.zeros(features.shape[1]))


def _fit(
    features: np.ndarray,
    targets: np.ndarray,
    weights: np.ndarray,
    penalties: np.ndarray,
    start: np.ndarray,
) -> np.ndarray:
    """Minimize the weighted logistic loss plus the penalties on absolute coefficients.

    Newton's method; each quadratic model with the penalty is minimized by coordinate descent.
    """
    coefficients = start.copy()
    value = _objective(features, targets, weights, penalties, coefficients)
    for _ in range(100):
        predicted = _logistic(features @ coefficients)
        gradient = features.T @ (weights * (predicted - targets))
        curvature = (features.T * (weights * predicted * (1 - predicted))) @ features
        curvature[np.diag_indices_from(curvature)] += 1e-12
        linear = gradient - curvature @ coefficients
        step = _lasso(curvature, linear, penalties, coefficients) - coefficients
        scale = 1.0
        while scale > 1e-8:  # a complete step may overshoot
            new = coefficients + scale * step
            new_value = _objective(features, targets, weights, penalties, new)
            if new_value <= value:
                break
            scale /= 2
        else:
            break
        coefficients, change, value = new, value - new_value, new_value
        if change <= 1e-12 * abs(value):
            break
    return coefficients


def _lasso(
    curvature: np.ndarray, linear: np.ndarray, penalties: np.ndarray, start: np.ndarray
) -> np.ndarray:
    """Minimize x·curvature·x / 2 + linear·x + penalties·|x|."""
    x = start.copy()
    for _ in range(1000):
        before = x.copy()
        for i in range(len(x)):
            rest = linear[i] + curvature[i] @ x - curvature[i, i] * x[i]
            x[i] = -np.sign(rest) * max(abs(rest) - penalties[i], 0) / curvature[i, i]
        if np.abs(x - before).max() <= 1e-10 * (1 + np.abs(x).max()):
            break
    return x


def _objective(
    features: np.ndarray,
    targets: np.ndarray,
    weights: np.ndarray,
    penalties: np.ndarray,
    coefficients: np.ndarray,
) -> float:
    loss = weights @ _losses(features @ coefficients, targets)
    return float(loss + penalties @ np.abs(coefficients))


def _losses(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, logits) - targets * logits


def _logistic(logits: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -logits))
