"""Vicuna benchmark: two answers side by side, each scored 1 to 10 by a judge.

Source: the Vicuna evaluation of 2023 in OpenChat's variant: the judge explains first (evidence
calibration) and sees both orders of the answers (balanced position calibration); Wang et al.,
"Large Language Models are not Fair Evaluators" (2023).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from ochat_ray.evaluate import pairs
from ochat_ray.evaluate.bias import Judged
from ochat_ray.evaluate.prompts import Prompts
from ochat_ray.evaluate.questions import Answers, Question
from ochat_ray.evaluate.records import Call
from ochat_ray.evaluate.stats import Part
from ochat_ray.evaluate.suite import Judgments, Suite
from ochat_ray.evaluate.verdicts import Pair, scores_of
from ochat_ray.evaluate.verdicts import parse_scores as parse_scores

CATEGORIES = frozenset(
    {"generic", "knowledge", "roleplay", "common-sense", "fermi", "counterfactual", "coding",
     "math", "writing"}
)  # fmt: skip
PROMPT_NAMES = frozenset({"question", "answer_1", "answer_2"})
"""Placeholders that a judge prompt may contain."""

Failures = Literal["drop", "zero"]


def calls(
    questions: Sequence[Question],
    model: Answers,
    baseline: Answers,
    prompts: Prompts,
    *,
    judge: Mapping[str, Any],
    samples: int,
) -> list[Call]:
    """Return the judge calls: every question in both orders, `samples` times each.

    Args:
        questions: The questions to judge.
        model: The model's answers.
        baseline: The baseline's answers.
        prompts: The judge prompts.
        judge: Fields of the request other than its messages: model, temperature, max_tokens.
        samples: Judgments per question and order.
    """
    found = []
    for question in questions:
        prompt = prompts.for_category(question.category)
        for first, second, about in pairs.both_orders(
            question, model, baseline, prompt, suite="vicuna", judge=judge["model"]
        ):
            values = {"question": question.turns[0], "answer_1": first[0], "answer_2": second[0]}
            for sample in range(samples):
                # The order is part of the key: two equal answers are still judged in both.
                parts = ("vicuna", question.id, about["model_first"], sample)
                found.append(
                    prompt.call(values, *parts, judge=judge, about=about | {"sample": sample})
                )
    return found


def parts(judgments: Iterable[Mapping[str, Any]], *, failures: Failures) -> dict[str, Part]:
    """Return each question's contribution to the score: the model's mean over the baseline's.

    Both orders have equal weight. An unreadable judgment counts as 0 to 0 ("zero") or is left out
    ("drop"). A question without a readable judgment in one of the orders is not scored: the other
    order alone would be biased towards one position.
    """
    scores: dict[str, dict[bool, list[tuple[float, float]]]] = defaultdict(
        lambda: {True: [], False: []}
    )
    for judgment in judgments:
        by_order = scores[judgment["question_id"]]
        pair = scores_of(judgment)
        if pair is None and failures == "zero":
            pair = (0.0, 0.0)
        if pair is not None:
            first_is_model = judgment["model_first"]
            by_order[first_is_model].append(pair if first_is_model else (pair[1], pair[0]))
    return {id: _part(by_order) for id, by_order in scores.items()}


def _part(by_order: Mapping[bool, list[tuple[float, float]]]) -> Part:
    if not all(by_order.values()):
        return Part(0, 0)
    means = [
        [sum(pair[side] for pair in found) / len(found) for found in by_order.values()]
        for side in (0, 1)
    ]
    return Part(100 * sum(means[0]) / 2, sum(means[1]) / 2)


def judged(judgments: Iterable[Mapping[str, Any]]) -> Iterator[Judged]:
    """Yield the readable judgments, for the bias statistics."""
    for judgment in judgments:
        pair = scores_of(judgment)
        if pair is not None:
            yield pairs.judged(judgment, *pair)


class Vicuna(Suite):
    """Suite `vicuna`."""

    prompt_file = "vicuna"
    prompt_names = PROMPT_NAMES
    unit = "% of the baseline's score"
    even = 100.0
    categories = CATEGORIES

    def calls(
        self, questions: Sequence[Question], model: Answers, baseline: Answers | None
    ) -> list[Call]:
        assert baseline is not None
        judge = self.config.judging(temperature=1.0)
        samples = self.config.samples
        return calls(questions, model, baseline, self.prompts, judge=judge, samples=samples)

    def read(self, judgment: Mapping[str, Any]) -> Pair | None:
        return scores_of(judgment)

    def shown(self, found: Pair) -> str:
        return f"{found[0]:g} to {found[1]:g}"

    def parts(self, judgments: Judgments) -> dict[str, Part]:
        """Return the means of both sides."""
        return parts(judgments, failures="drop")

    def zero_parts(self, judgments: Judgments) -> dict[str, Part]:
        """Return the means with unreadable judgments as 0 to 0."""
        return parts(judgments, failures="zero")

    def judged(self, judgments: Judgments) -> Iterator[Judged]:
        return judged(judgments)
