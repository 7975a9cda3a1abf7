"""AlpacaEval: pairwise preference of a judge, and the win rate.

Source of numbers and formats: tatsu-lab/alpaca_eval, metrics/helpers.py, main.py and
completion_parsers.py. alpaca_eval shows every pair once, in random order; here both orders are
judged, and the preference is the mean of the two.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ochat_ray.errors import UserError
from ochat_ray.evaluate import pairs
from ochat_ray.evaluate.bias import Judged
from ochat_ray.evaluate.config import EvaluateConfig
from ochat_ray.evaluate.length_control import length_controlled, read_difficulty
from ochat_ray.evaluate.questions import Answers, Question
from ochat_ray.evaluate.records import Call
from ochat_ray.evaluate.stats import Part
from ochat_ray.evaluate.suite import Judgments, Suite
from ochat_ray.evaluate.verdicts import verdict_of

DRAW = 1.5

PROMPT_NAMES = frozenset({"instruction", "output_1", "output_2"})
"""Placeholders that a judge prompt may contain."""


def win_rate(preferences: Iterable[float | None]) -> dict[str, Any]:
    """Return the model's win rate against the baseline, in percent.

    A preference lies between 1 (the baseline's output is better) and 2 (the model's is better); 1.5
    and 0 are draws. None, NaN and values out of this range are not counted. The standard error is
    that of the mean (ddof=1), None for fewer than two preferences; both rates are None for none.
    `discrete_win_rate` first rounds every preference to a win, a loss or a draw.
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
    """Return the mean length in characters, rounded down."""
    return int(np.mean([len(output) for output in outputs])) if outputs else 0


def _mean(shares: np.ndarray) -> float | None:
    return 100 * float(np.mean(shares)) if len(shares) else None


def _standard_error(shares: np.ndarray) -> float | None:
    if len(shares) < 2:
        return None
    return 100 * float(np.std(shares, ddof=1)) / math.sqrt(len(shares))


def read_annotations(
    path: str, *, model: str | None = None, difficulty: str = ""
) -> dict[str, Any]:
    """Compute a leaderboard row from alpaca_eval's annotations.json; `output_2` is the model's.

    Args:
        path: The file.
        model: Expected model; None for any.
        difficulty: Path of alpaca_eval's df_gamed.csv; see `length_control.length_controlled`.

    Raises:
        UserError: The file is not such a list, has several models, or another model than `model`.
    """
    difficulties = read_difficulty(difficulty) if difficulty else None
    try:
        rows = json.loads(Path(path).read_text(encoding="utf-8"))
        preferences = [row["preference"] for row in rows]
        outputs = [row["output_2"] for row in rows]
        lengths = [(len(row["output_1"]), len(row["output_2"])) for row in rows]
        models = {row.get("generator_2") for row in rows}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"--annotations {path}: {type(error).__name__} {error}; give alpaca_eval's "
            "annotations.json, a list of objects with `preference`, `output_1` and `output_2`"
        ) from error
    if len(models) > 1 or (model is not None and models != {model}):
        names = ", ".join(sorted(map(str, models)))
        raise UserError(f"--annotations {path} is of {names}, not of {model or 'one model'}")
    controlled = length_controlled(preferences, lengths, difficulties, range(len(rows)))
    return win_rate(preferences) | {"avg_length": average_length(outputs)} | controlled


def second_preferred(judgment: Mapping[str, Any]) -> float | None:
    """Return the preference for the second output, 0 to 1; None if the judgment is unreadable.

    With log-probabilities (the weighted variant) it is the second letter's share of the probability
    of both letters.
    """
    if judgment.get("logprobs"):
        likely: dict[str, float] = defaultdict(float)
        for entry in judgment["logprobs"][0].get("top_logprobs") or []:
            likely[entry["token"].strip()] += math.exp(entry["logprob"])
        both = likely["A"] + likely["B"]
        if both:
            return likely["B"] / both
    verdict = verdict_of(judgment)
    return None if verdict is None else {"A": 0.0, "B": 1.0, "tie": 0.5}[verdict]


def preferences(judgments: Iterable[Mapping[str, Any]]) -> dict[str, float | None]:
    """Return each question's preference over both orders, 1 (baseline) to 2 (model)."""
    found: dict[str, dict[bool, float | None]] = defaultdict(dict)
    for judgment in judgments:
        second = second_preferred(judgment)
        if second is not None and judgment["model_first"]:
            second = 1 - second
        found[judgment["question_id"]][judgment["model_first"]] = second
    return {id: _preference(both.get(True), both.get(False)) for id, both in found.items()}


def _preference(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else 1 + (one + other) / 2


def parts(judgments: Iterable[Mapping[str, Any]]) -> dict[str, Part]:
    """Return each question's contribution to the win rate in percent."""
    return {
        id: Part(0, 0) if preference is None else Part(100 * (preference - 1), 1)
        for id, preference in preferences(judgments).items()
    }


def judged(judgments: Iterable[Mapping[str, Any]]) -> Iterator[Judged]:
    """Yield the comparisons with a preference, for the bias statistics; the lead is in -1..1."""
    for judgment in judgments:
        second = second_preferred(judgment)
        if second is not None:
            yield pairs.judged(judgment, 1 - second, second)


def files(
    questions: Sequence[Question],
    model: Answers,
    baseline: Answers,
    judgments: Iterable[Mapping[str, Any]],
    judge: str,
) -> dict[str, str]:
    """Return the contents of alpaca_eval's model_outputs.json and annotations.json."""
    found = preferences(judgments)
    rows = [(q, model.turns[q.id][0], baseline.turns[q.id][0]) for q in questions]
    outputs = [
        {
            "instruction": question.id,
            "output": own,
            "generator": model.model,
            "dataset": question.category,
        }
        for question, own, _ in rows
    ]
    annotations = [
        {
            "instruction": question.id, "dataset": question.category,
            "output_1": other, "generator_1": baseline.model,
            "output_2": own, "generator_2": model.model,
            "annotator": judge, "preference": found[question.id],
        }
        for question, own, other in rows
    ]  # fmt: skip
    return {
        "model_outputs.json": json.dumps(outputs, indent=2, ensure_ascii=False),
        "annotations.json": json.dumps(annotations, indent=2, ensure_ascii=False),
    }


class AlpacaEval(Suite):
    """Suite `alpaca_eval`."""

    prompt_file = "alpaca_eval"
    prompt_names = PROMPT_NAMES
    unit = "% of wins against the baseline"
    even = 50.0
    file_names = ("model_outputs.json", "annotations.json")

    def __init__(self, config: EvaluateConfig) -> None:
        """Read the difficulties, if given, and the other inputs."""
        self.difficulty = read_difficulty(config.difficulty) if config.difficulty else None
        super().__init__(config)

    def check(self) -> None:
        """Check also that each question has a difficulty, if any has."""
        super().check()
        if self.difficulty is None:
            return
        known, count = self.difficulty.by_index, len(self.questions)
        if missing := set(range(count)) - set(known):
            raise UserError(
                f"--difficulty has no row for {len(missing)} of {count} questions; it is for "
                f"alpaca_eval's own {len(known)} questions, in their order"
            )

    def calls(
        self, questions: Sequence[Question], model: Answers, baseline: Answers | None
    ) -> list[Call]:
        assert baseline is not None
        judge = self.config.judging(temperature=0.0)
        if self.config.weighted:  # one letter, with the log-probabilities of both
            judge |= {"max_tokens": 1, "logprobs": True, "top_logprobs": 5}
        prompt = self.prompts.named("letter" if self.config.weighted else "verdict")
        found = []
        for question in questions:
            for first, second, about in pairs.both_orders(
                question, model, baseline, prompt, suite="alpaca_eval", judge=judge["model"]
            ):
                values = {
                    "instruction": question.turns[0],
                    "output_1": first[0],
                    "output_2": second[0],
                }
                parts = ("alpaca_eval", question.id, about["model_first"])
                found.append(prompt.call(values, *parts, judge=judge, about=about))
        return found

    def read(self, judgment: Mapping[str, Any]) -> float | None:
        """Return the preference for the second output."""
        return second_preferred(judgment)

    def shown(self, found: float) -> str:
        return f"{1 - found:.2g} to {found:.2g}"

    def parts(self, judgments: Judgments) -> dict[str, Part]:
        """Return the preferences in percent."""
        return parts(judgments)

    def judged(self, judgments: Judgments) -> Iterator[Judged]:
        return judged(judgments)

    def more(self, judgments: Judgments) -> dict[str, Any]:
        """Return a leaderboard row."""
        positions = {question.id: index for index, question in enumerate(self.questions)}
        lengths = {j["question_id"]: j["lengths"] for j in judgments if j["model_first"]}
        found = preferences(judgments)
        controlled = length_controlled(
            [found[id] for id in lengths],
            [(baseline, model) for model, baseline in lengths.values()],
            self.difficulty,
            [positions[id] for id in lengths],
        )
        average = sum(model for model, _ in lengths.values()) / len(lengths)
        return win_rate(found.values()) | {"avg_length": int(average)} | controlled

    def files(
        self,
        questions: Sequence[Question],
        model: Answers,
        baseline: Answers | None,
        judgments: Judgments,
    ) -> dict[str, str]:
        assert baseline is not None
        return files(questions, model, baseline, judgments, self.config.judge)
