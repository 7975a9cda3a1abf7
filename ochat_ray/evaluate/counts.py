"""Counts of answers and judgments that a score alone does not show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ochat_ray.evaluate.questions import Answers, Question


def count_answers(answers: Answers, questions: Sequence[Question]) -> dict[str, int]:
    """Count a model's questions with an answer, an empty answer, and one given elsewhere as well.

    A model that gives one answer to all questions may score well with a biased judge.
    """
    texts = {q.id: {text.strip() for text in answers.turns.get(q.id, ())} for q in questions}
    shared = Counter(text for own in texts.values() for text in own if text)
    return {
        "answered": sum(bool(own) for own in texts.values()),
        "empty": sum("" in own for own in texts.values()),
        "identical": sum(any(shared[text] > 1 for text in own) for own in texts.values()),
    }


def count_declined(
    judgments: Iterable[Mapping[str, Any]], read: Callable[[Mapping[str, Any]], Any]
) -> int:
    """Count judgments with the lowest score for an empty answer that the judge did not rate."""
    return sum(
        read(judgment) is not None and read({**judgment, "empty": ()}) is None
        for judgment in judgments
    )


def warnings_of(results: Mapping[str, Any]) -> list[str]:
    """Return sentences on everything that makes the scores less reliable."""
    found = []
    for model, counts in results["answers"].items():
        if counts["identical"]:
            found.append(
                f"{counts['identical']} of {counts['answered']} questions have an answer of "
                f"{model} that it gives to another question as well."
            )
        if counts["empty"]:
            found.append(f"{counts['empty']} questions have an empty answer of {model}.")
    for one in results["scores"]:
        if one["declined"]:
            found.append(
                f"{one['declined']} of {one['judgments']} judgments do not rate an empty answer "
                f"({one['model']}); it has the lowest score in them."
            )
    return found
