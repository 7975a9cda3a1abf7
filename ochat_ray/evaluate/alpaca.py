"""Which of two outputs does a judge prefer, and how often: AlpacaEval's numbers.

Source: tatsu-lab/alpaca_eval, metrics/helpers.py and main.py: the same names and the same values.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ochat_ray.errors import UserError

DRAW = 1.5


def win_rate(preferences: Iterable[float | None]) -> dict[str, Any]:
    """The model's wins against the baseline, in per cent.

    A preference lies between 1, the baseline's output is better, and 2, the model's is; 1.5 and 0
    are draws. None, nan and whatever lies outside count nowhere. The standard error is of the mean
    (ddof=1), None for fewer than two; both rates are None for none at all. `discrete_win_rate`
    rounds every preference to a win, a loss or a draw first.
    """
    given = (DRAW if p == 0 else p for p in preferences if p is not None)
    values = np.array([p for p in given if 1 <= p <= 2], dtype=np.float64)
    wins, losses = values > DRAW, values < DRAW
    draws = len(values) - int(wins.sum()) - int(losses.sum())
    return {
        "win_rate": _mean(values - 1),
        "standard_error": _standard_error(values - 1),
        "n_wins": int(wins.sum()),
        "n_wins_base": int(losses.sum()),
        "n_draws": draws,
        "n_total": len(values),
        "discrete_win_rate": _mean(wins + 0.5 * ~(wins | losses)),
    }


def average_length(outputs: Sequence[str]) -> int:
    """The mean length in characters, rounded down."""
    return int(np.mean([len(output) for output in outputs])) if outputs else 0


def _mean(shares: np.ndarray) -> float | None:
    return 100 * float(np.mean(shares)) if len(shares) else None


def _standard_error(shares: np.ndarray) -> float | None:
    if len(shares) < 2:
        return None
    return 100 * float(np.std(shares, ddof=1)) / math.sqrt(len(shares))


def read_annotations(path: str) -> dict[str, Any]:
    """A leaderboard's row from alpaca_eval's annotations.json: `output_2` is the model's.

    Raises:
        UserError: the file is no such list, or is of more than one model.
    """
    try:
        rows = json.loads(Path(path).read_text(encoding="utf-8"))
        preferences = [row["preference"] for row in rows]
        outputs = [row["output_2"] for row in rows]
        models = {row.get("generator_2") for row in rows}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"--annotations {path}: {type(error).__name__} {error}; give alpaca_eval's "
            "annotations.json, a list of objects with `preference` and `output_2`"
        ) from error
    if len(models) > 1:
        raise UserError(f"--annotations {path}: of {len(models)} models, not of one")
    return win_rate(preferences) | {"avg_length": average_length(outputs)}
