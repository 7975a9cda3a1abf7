"""Counts of answers and judgments that a score alone does not show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ochat_ray.evaluate.config import EXACT_MATCH
from ochat_ray.evaluate.questions import Answers, Question
from ochat_ray.evaluate.records import FAILED


def count_answers(answers: Answers, questions: Sequence[Question]) -> dict[str, Any]:
    """Count a model's questions with an answer, an empty answer, and one given elsewhere as well.

    `mean_characters` is per turn; None without answers.

    A model that gives one answer to all questions may score well with a biased judge.
    """
    texts = {q.id: {text.strip() for text in answers.turns.get(q.id, ())} for q in questions}
    shared = Counter(text for own in texts.values() for text in own if text)
    lengths = [len(text) for q in questions for text in answers.turns.get(q.id, ())]
    return {
        "mean_characters": sum(lengths) / len(lengths) if lengths else None,
        "answered": sum(bool(own) for own in texts.values()),
        "empty": sum("" in own for own in texts.values()),
        "identical": sum(any(shared[text] > 1 for text in own) for own in texts.values()),
    }


def count_replies(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Count the recorded replies that were refused, empty, cut off, filtered or retried.

    `changed` has the fields that the model does not support, as sent; None if they are left out.
    """
    replies = [record for record in records if FAILED not in record]
    ends = Counter(record.get("finish_reason") for record in replies if not record.get("logprobs"))
    changed: dict[str, str | None] = {}
    for record in replies:
        changed |= record.get("changed", {})
    return {
        "refused": len(records) - len(replies),
        "empty_replies": sum(
            not record["text"].strip() and "reason" not in record for record in replies
        ),
        "cut_off": ends["length"],
        "filtered": ends["content_filter"],
        "retried": sum(record.get("attempts", 1) > 1 for record in replies),
        "changed": changed,
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
        if counts["identical"] and results["judge"] != EXACT_MATCH:  # equal to a reference, or not
            found.append(
                f"{counts['identical']} of {counts['answered']} questions have an answer of "
                f"{model} that it gives to another question as well."
            )
        if counts["empty"]:
            found.append(f"{counts['empty']} questions have an empty answer of {model}.")
        found += _about_replies(f"answers of {model}", {**counts, "empty_replies": 0})
    for one in results["scores"]:
        found += _about_replies(f"judgments of {one['model']}", one["replies"])
        if one["not_judged"]:
            scored = one["questions"] - one["not_judged"]
            answered = f"; {one['not_answered']} have no answer" if one["not_answered"] else ""
            found.append(
                f"The score of {one['model']} is of {scored} of {one['questions']} "
                f"questions{answered}."
            )
        if one["declined"]:
            found.append(
                f"{one['declined']} of {one['judgments']} judgments do not rate an empty answer "
                f"({one['model']}); it has the lowest score in them."
            )
    return found


def _about_replies(whose: str, counts: Mapping[str, Any]) -> list[str]:
    texts = {
        "refused": "were refused because of their content; --retry failed asks them again",
        "empty_replies": "are empty",
        "cut_off": "are cut off by their limit of tokens",
        "filtered": "are cut off by a content filter",
        "retried": "needed more than one request",
    }
    found = [f"{counts[name]} {whose} {text}." for name, text in texts.items() if counts[name]]
    for name, new in counts["changed"].items():
        found.append(f"The {whose} were asked for without {name}{f', as {new}' if new else ''}.")
    return found
