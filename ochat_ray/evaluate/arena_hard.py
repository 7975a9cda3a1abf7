"""Arena-Hard: hard single-turn prompts, compared with a baseline's answers by five labels.

Source: Li et al., "From Crowdsourced Data to High-Quality Benchmarks" (2024), and
lmarena/arena-hard-auto: question and answer formats, labels, both orders, three votes for a clear
verdict, and the rule that a question lacking a readable verdict in one order does not count.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ochat_ray.evaluate import pairs
from ochat_ray.evaluate.bias import Judged
from ochat_ray.evaluate.questions import Answers, Question
from ochat_ray.evaluate.records import Call
from ochat_ray.evaluate.stats import Part
from ochat_ray.evaluate.suite import Judgments, Suite
from ochat_ray.evaluate.verdicts import votes_of

PROMPT_NAMES = frozenset({"question", "answer_a", "answer_b"})
"""Placeholders that a judge prompt may contain."""


def parts(judgments: Iterable[Mapping[str, Any]]) -> dict[str, Part]:
    """Return each question's won votes, in percent, and its votes."""
    votes: dict[str, dict[bool, tuple[float, int] | None]] = defaultdict(dict)
    for judgment in judgments:
        votes[judgment["question_id"]][judgment["model_first"]] = votes_of(judgment)
    return {id: _part(both.get(True), both.get(False)) for id, both in votes.items()}


def _part(first: tuple[float, int] | None, second: tuple[float, int] | None) -> Part:
    if first is None or second is None:
        return Part(0, 0)
    won = first[0] * first[1] + (1 - second[0]) * second[1]
    return Part(100 * won, first[1] + second[1])


def judged(judgments: Iterable[Mapping[str, Any]]) -> Iterator[Judged]:
    """Yield the readable comparisons, for the bias statistics; the lead is in votes, -3 to 3."""
    for judgment in judgments:
        found = votes_of(judgment)
        if found is not None:
            share, votes = found
            yield pairs.judged(judgment, share * votes, (1 - share) * votes)


class ArenaHard(Suite):
    """Suite `arena_hard`."""

    prompt_file = "arena_hard"
    prompt_names = PROMPT_NAMES
    unit = "% of votes against the baseline, three for a clear verdict"
    even = 50.0
    votes = True

    def temperature(self, _category: str) -> float:
        return 0.0

    def calls(
        self, questions: Sequence[Question], model: Answers, baseline: Answers | None
    ) -> list[Call]:
        assert baseline is not None
        judge = self.config.judging(temperature=0.0)
        found = []
        for question in questions:
            prompt = self.prompts.for_category(question.category)
            for first, second, about in pairs.both_orders(
                question, model, baseline, prompt, suite="arena_hard", judge=judge["model"]
            ):
                values = {
                    "question": question.turns[0],
                    "answer_a": first[0],
                    "answer_b": second[0],
                }
                parts = ("arena_hard", question.id, about["model_first"])
                found.append(prompt.call(values, *parts, judge=judge, about=about))
        return found

    def read(self, judgment: Mapping[str, Any]) -> tuple[float, int] | None:
        """Parse the first answer's share of the win, and the number of votes."""
        return votes_of(judgment)

    def shown(self, found: tuple[float, int]) -> str:
        share, votes = found
        sign = ">" * (2 if votes > 1 else 1)
        return {1.0: f"A{sign}B", 0.0: f"B{sign}A"}.get(share, "A=B")

    def parts(self, judgments: Judgments) -> dict[str, Part]:
        """Return the won votes."""
        return parts(judgments)

    def judged(self, judgments: Judgments) -> Iterator[Judged]:
        return judged(judgments)
