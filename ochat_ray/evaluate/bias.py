"""Position bias and length bias of a judge, and agreement of two judges.

Source: Wang et al., "Large Language Models are not Fair Evaluators" (2023), for the position;
Dubois et al., "Length-Controlled AlpacaEval" (2024), for the length.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """One judgment of two answers: scores and lengths of the first and second one shown.

    `pair` identifies the two answers and the sample; it is the same in both orders.
    """

    pair: tuple[Any, ...]
    model_first: bool
    first: float
    second: float
    first_length: int
    second_length: int

    @property
    def preferred(self) -> int:
        """Preferred answer: 1 the first, -1 the second, 0 neither."""
        return (self.first > self.second) - (self.first < self.second)


@dataclass(frozen=True, kw_only=True, slots=True)
class Biases:
    """Bias statistics; None where the judgments do not determine a value."""

    order_changes_verdict: float | None
    """Share of pairs, judged in both orders, whose preferred answer changes with the order."""

    first_minus_second: float | None
    """Mean lead of the answer shown first, in points."""

    longer_preferred: float | None
    """Share of judgments with a preference, of unequal lengths, that prefer the longer answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Control:
    """Statistics of judgments that compare an answer with itself; None if there are none."""

    called_equal: float | None
    """Share of judgments without a preference."""

    first_minus_second: float | None
    """Mean lead of the answer shown first, in points."""


def biases(judged: Iterable[Judged]) -> Biases:
    """Return the judge's biases over all judgments."""
    judged = list(judged)
    verdicts: dict[tuple[Any, ...], dict[bool, int]] = defaultdict(dict)
    for one in judged:
        # From the model's perspective: equal in both orders if only the answers matter.
        verdicts[one.pair][one.model_first] = one.preferred if one.model_first else -one.preferred
    both = [found for found in verdicts.values() if len(found) == 2]
    unequal = [one for one in judged if one.preferred and one.first_length != one.second_length]
    longer = [
        one for one in unequal if (one.preferred > 0) == (one.first_length > one.second_length)
    ]
    return Biases(
        order_changes_verdict=_mean([found[True] != found[False] for found in both]),
        first_minus_second=_mean([one.first - one.second for one in judged]),
        longer_preferred=len(longer) / len(unequal) if unequal else None,
    )


def outcomes(judged: Iterable[Judged]) -> dict[str, float]:
    """Return each question's outcome: 1 if the model won, 0 if it lost, 0.5 for a tie.

    The scores of all its judgments are added, those of both orders: an advantage of the first
    answer cancels. A question that lacks a judgment in one of the orders has no outcome.
    """
    leads: dict[str, dict[bool, list[float]]] = defaultdict(lambda: {True: [], False: []})
    for one in judged:
        lead = one.first - one.second
        sign = 1 if one.model_first else -1
        leads[str(one.pair[0])][one.model_first].append(sign * lead)
    found = {}
    for question, by_order in leads.items():
        if all(by_order.values()):
            total = sum(sum(own) / len(own) for own in by_order.values())
            found[question] = 0.5 if abs(total) < 1e-9 else float(total > 0)
    return found


def control(judged: Iterable[Judged]) -> Control:
    """Return the judge's statistics on comparisons of an answer with itself."""
    judged = list(judged)
    return Control(
        called_equal=_mean([not one.preferred for one in judged]),
        first_minus_second=_mean([one.first - one.second for one in judged]),
    )


def agreement(pairs: Sequence[tuple[Any, Any]]) -> dict[str, Any]:
    """Return accuracy and Cohen's kappa of pairs of labels.

    Kappa is the agreement beyond chance, 1 at most; None if chance alone agrees always.
    """
    same = sum(one == other for one, other in pairs) / len(pairs)
    own, others = Counter(one for one, _ in pairs), Counter(other for _, other in pairs)
    chance = sum(own[label] * others[label] for label in own) / len(pairs) ** 2
    kappa = (same - chance) / (1 - chance) if chance < 1 else None
    return {"questions": len(pairs), "accuracy": same, "kappa": kappa}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
