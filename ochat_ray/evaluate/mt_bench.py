"""Two-turn questions, each answer rated from 1 to 10, or held against another model's.

Source: Zheng et al., "Judging LLM-as-a-Judge" (2023), and lm-sys/FastChat's llm_judge: formats,
temperatures, patterns and the rule that a pairwise win needs both orders to agree.
"""

from __future__ import annotations

import re
from typing import Literal

HIGHEST = 10
_RATINGS = (re.compile(r"\[\[(\d+\.?\d*)\]\]"), re.compile(r"\[(\d+\.?\d*)\]"))

Verdict = Literal["A", "B", "tie"]
Outcome = Literal["win", "loss", "tie"]

NEED_REFERENCE = frozenset({"math", "reasoning", "coding"})
"""Categories whose judge is shown a reference answer."""

TEMPERATURES = {
    "writing": 0.7, "roleplay": 0.7, "extraction": 0.0, "math": 0.0, "coding": 0.0,
    "reasoning": 0.0, "stem": 0.1, "humanities": 0.1,
}  # fmt: skip
"""What a question's category is answered with; others with 0.7."""


def parse_rating(text: str) -> float | None:
    """The judge's rating: the first `[[x]]`, or else the first `[x]`.

    None where there is none, or where it lies above 10: the rating is missing, and no number.
    """
    for pattern in _RATINGS:
        if found := pattern.search(text):
            rating = float(found[1])
            return rating if rating <= HIGHEST else None
    return None


def parse_verdict(text: str) -> Verdict | None:
    """Which of the answers A and B the judge chose; [[C]] is a tie. None where it says neither.

    As in FastChat, the first of A, B and C counts that is named anywhere.
    """
    verdicts: tuple[tuple[str, Verdict], ...] = (("[[A]]", "A"), ("[[B]]", "B"), ("[[C]]", "tie"))
    return next((verdict for mark, verdict in verdicts if mark in text), None)


def outcome(model_first: Verdict | None, model_second: Verdict | None) -> Outcome | None:
    """The model's, from the verdicts with its answer as A, and with it as B.

    Verdicts that contradict each other are a tie; None where one of them is missing.
    """
    if model_first is None or model_second is None:
        return None
    if (model_first, model_second) == ("A", "B"):
        return "win"
    if (model_first, model_second) == ("B", "A"):
        return "loss"
    return "tie"
