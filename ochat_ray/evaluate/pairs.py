"""Pairwise comparison in both orders, shared by all suites that compare."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ochat_ray.evaluate.bias import Judged
from ochat_ray.evaluate.prompts import Prompt
from ochat_ray.evaluate.questions import Answers, Question


def both_orders(
    question: Question,
    model: Answers,
    baseline: Answers,
    prompt: Prompt,
    *,
    suite: str,
    judge: str,
    turn: int = 0,
) -> Iterator[tuple[tuple[str, ...], tuple[str, ...], dict[str, Any]]]:
    """Yield (first answer, second answer, record) for both orders, starting with the model first.

    The record holds the lengths, in characters, of both answers in this turn, and whether they are
    empty.

    Args:
        question: The question that both answer.
        model: The model's answers.
        baseline: The baseline's answers.
        prompt: The judge prompt.
        suite: Name of the suite, for the record.
        judge: Name of the judge, for the record.
        turn: Index of the turn that is compared.
    """
    own, other = model.turns[question.id], baseline.turns[question.id]
    for model_first in (True, False):
        first, second = (own, other) if model_first else (other, own)
        about = {
            "suite": suite, "question_id": question.id, "category": question.category,
            "model": model.model, "baseline": baseline.model, "model_first": model_first,
            "prompt": prompt.name, "prompt_digest": prompt.digest, "judge": judge,
            "lengths": [len(first[turn]), len(second[turn])],
            "empty": [not first[turn].strip(), not second[turn].strip()],
        }  # fmt: skip
        yield first, second, about


def judged(judgment: Mapping[str, Any], first: float, second: float) -> Judged:
    """Return a judgment with the scores of the first and the second answer, for `biases`."""
    names = ("question_id", "turn", "sample")
    return Judged(
        pair=tuple(judgment.get(name) for name in names),
        model_first=judgment["model_first"],
        first=first,
        second=second,
        first_length=judgment["lengths"][0],
        second_length=judgment["lengths"][1],
    )
