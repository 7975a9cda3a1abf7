"""MT-bench: two-turn questions, each answer rated 1 to 10 or compared with a baseline's.

Source: Zheng et al., "Judging LLM-as-a-Judge" (2023), and lm-sys/FastChat's llm_judge: formats,
temperatures, patterns and the rule that a pairwise win needs both orders to agree.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from ochat_ray.errors import UserError
from ochat_ray.evaluate import pairs
from ochat_ray.evaluate.bias import Judged
from ochat_ray.evaluate.prompts import Prompts
from ochat_ray.evaluate.questions import Answers, Question
from ochat_ray.evaluate.records import Call
from ochat_ray.evaluate.stats import Part
from ochat_ray.evaluate.suite import Judgments, Suite
from ochat_ray.evaluate.verdicts import Verdict, rating_of, verdict_of
from ochat_ray.evaluate.verdicts import parse_rating as parse_rating
from ochat_ray.evaluate.verdicts import parse_verdict as parse_verdict

Outcome = Literal["win", "loss", "tie"]

PROMPT_NAMES = frozenset(
    """
    question question_1 question_2 answer answer_1 answer_2 answer_a answer_b answer_a_1 answer_a_2
    answer_b_1 answer_b_2 ref_answer_1 ref_answer_2
    """.split()
)
"""Placeholders that a judge prompt may contain."""

NEED_REFERENCE = frozenset({"math", "reasoning", "coding"})
"""Categories in which the judge is shown a reference answer."""

TEMPERATURES = {
    "writing": 0.7, "roleplay": 0.7, "extraction": 0.0, "math": 0.0, "coding": 0.0,
    "reasoning": 0.0, "stem": 0.1, "humanities": 0.1,
}  # fmt: skip
"""Temperature of the answers by category; 0.7 without a category."""

CATEGORIES = frozenset(TEMPERATURES)


def outcome(model_first: Verdict | None, model_second: Verdict | None) -> Outcome | None:
    """Combine the verdicts with the model's answer as A and as B into one outcome.

    Contradictory verdicts are a tie; None if a verdict is missing.
    """
    if model_first is None or model_second is None:
        return None
    if (model_first, model_second) == ("A", "B"):
        return "win"
    if (model_first, model_second) == ("B", "A"):
        return "loss"
    return "tie"


def rating_calls(
    questions: Sequence[Question],
    model: Answers,
    references: Answers | None,
    prompts: Prompts,
    *,
    judge: Mapping[str, Any],
) -> list[Call]:
    """Return the judge calls that rate every turn of every answer.

    Args:
        questions: The questions to judge.
        model: The model's answers.
        references: Reference answers, or None.
        prompts: The judge prompts.
        judge: Fields of the request other than its messages.

    Raises:
        UserError: A reference answer or a prompt is missing.
    """
    found = []
    for question in questions:
        answers = model.turns[question.id]
        for turn in range(len(question.turns)):
            values = _questions(question, turn) | _references(question, turn, references)
            values |= {"answer": answers[0]} | _numbered("answer", answers)
            prompt = prompts.named(_name("single", question, turn))
            about = {
                "suite": "mt_bench", "question_id": question.id, "category": question.category,
                "turn": turn, "model": model.model, "judge": judge["model"],
                "prompt": prompt.name, "prompt_digest": prompt.digest,
                "empty": [not answers[turn].strip()],
            }  # fmt: skip
            parts = ("mt_bench", question.id, turn)
            found.append(prompt.call(values, *parts, judge=judge, about=about))
    return found


def pair_calls(
    questions: Sequence[Question],
    model: Answers,
    baseline: Answers,
    references: Answers | None,
    prompts: Prompts,
    *,
    judge: Mapping[str, Any],
) -> list[Call]:
    """Return the judge calls that compare every turn with the baseline's, in both orders.

    Args:
        questions: The questions to judge.
        model: The model's answers.
        baseline: The baseline's answers.
        references: Reference answers, or None.
        prompts: The judge prompts.
        judge: Fields of the request other than its messages.

    Raises:
        UserError: A reference answer or a prompt is missing.
    """
    found = []
    for question in questions:
        for turn in range(len(question.turns)):
            prompt = prompts.named(_name("pair", question, turn))
            shared = _questions(question, turn) | _references(question, turn, references)
            for a, b, about in pairs.both_orders(
                question, model, baseline, prompt,
                suite="mt_bench_pairs", judge=judge["model"], turn=turn,
            ):  # fmt: skip
                values = shared | {"answer_a": a[0], "answer_b": b[0]}
                values |= _numbered("answer_a", a) | _numbered("answer_b", b)
                parts = ("mt_bench_pairs", question.id, turn, about["model_first"])
                found.append(prompt.call(values, *parts, judge=judge, about=about | {"turn": turn}))
    return found


def rating_parts(
    judgments: Iterable[Mapping[str, Any]], *, turn: int | None = None
) -> dict[str, Part]:
    """Return each question's contribution to the mean rating of one turn or all turns.

    Unreadable judgments contribute nothing.
    """
    sums: dict[str, list[float]] = defaultdict(list)
    for judgment in judgments:
        ratings = sums[judgment["question_id"]]
        if turn in (None, judgment["turn"]):
            rating = rating_of(judgment)
            ratings += [] if rating is None else [rating]
    return {id: Part(sum(ratings), len(ratings)) for id, ratings in sums.items()}


def outcomes(judgments: Iterable[Mapping[str, Any]]) -> dict[tuple[str, int], Outcome | None]:
    """Return the model's outcome by question and turn."""
    verdicts: dict[tuple[str, int], dict[bool, Verdict | None]] = defaultdict(dict)
    for judgment in judgments:
        at = (judgment["question_id"], judgment["turn"])
        verdicts[at][judgment["model_first"]] = verdict_of(judgment)
    return {at: outcome(both.get(True), both.get(False)) for at, both in verdicts.items()}


def pair_parts(judgments: Iterable[Mapping[str, Any]]) -> dict[str, Part]:
    """Return each question's contribution to the win rate in percent; a tie is half a win."""
    parts: dict[str, list[Outcome | None]] = defaultdict(list)
    for (id, _), found in outcomes(judgments).items():
        parts[id].append(found)
    worth = {"win": 100.0, "tie": 50.0, "loss": 0.0}
    return {
        id: Part(sum(worth[o] for o in found if o), sum(o is not None for o in found))
        for id, found in parts.items()
    }


def judged(judgments: Iterable[Mapping[str, Any]]) -> Iterator[Judged]:
    """Yield comparisons with a verdict, for the bias statistics; the preferred one leads by 1."""
    for judgment in judgments:
        verdict = verdict_of(judgment)
        if verdict is not None:
            yield pairs.judged(judgment, float(verdict == "A"), float(verdict == "B"))


def answer_file(model: Answers) -> str:
    """Return the contents of FastChat's model_answer/*.jsonl."""
    return _lines(
        {
            "question_id": _id(id),
            "model_id": model.model,
            "choices": [{"index": 0, "turns": list(turns)}],
        }
        for id, turns in model.turns.items()
    )


def rating_file(judgments: Iterable[Mapping[str, Any]]) -> str:
    """Return the contents of FastChat's model_judgment/*_single.jsonl; a failed score is -1."""
    return _lines(
        {
            "question_id": _id(judgment["question_id"]),
            "model": judgment["model"],
            "judge": [judgment["judge"], judgment["prompt"]],
            "judgment": judgment["text"],
            "score": -1 if (rating := rating_of(judgment)) is None else rating,
            "turn": judgment["turn"] + 1,
        }
        for judgment in judgments
    )


def pair_file(judgments: Iterable[Mapping[str, Any]]) -> str:
    """Return the contents of FastChat's model_judgment/*_pair.jsonl.

    model_1 is the model, shown first in game 1.
    """
    games: dict[tuple[str, int], dict[bool, Mapping[str, Any]]] = defaultdict(dict)
    for judgment in judgments:
        games[judgment["question_id"], judgment["turn"]][judgment["model_first"]] = judgment
    names = {
        True: {"A": "model_1", "B": "model_2", "tie": "tie", None: "error"},
        False: {"A": "model_2", "B": "model_1", "tie": "tie", None: "error"},
    }
    return _lines(
        {
            "question_id": _id(id),
            "model_1": both[True]["model"],
            "model_2": both[True]["baseline"],
            "g1_winner": names[True][verdict_of(both[True])],
            "g2_winner": names[False][verdict_of(both[False])],
            "judge": [both[True]["judge"], both[True]["prompt"]],
            "g1_judgment": both[True]["text"],
            "g2_judgment": both[False]["text"],
            "turn": turn + 1,
        }
        for (id, turn), both in games.items()
    )


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _id(id: str) -> int | str:
    """Return the id as an integer if it is one, as in FastChat's files."""
    return int(id) if id.isdecimal() else id


def _name(kind: Literal["single", "pair"], question: Question, turn: int) -> str:
    """Return FastChat's name of the prompt."""
    math = "math-v1" if question.category in NEED_REFERENCE else None
    version = math or {"single": "v1", "pair": "v2"}[kind]
    return f"{kind}-{version}" + ("-multi-turn" if turn else "")


def _questions(question: Question, turn: int) -> dict[str, str]:
    return {"question": question.turns[0]} | _numbered("question", question.turns[: turn + 1])


def _references(question: Question, turn: int, references: Answers | None) -> dict[str, str]:
    if question.category not in NEED_REFERENCE:
        return {}
    known = references.turns.get(question.id, ()) if references else ()
    if len(known) <= turn:
        raise UserError(
            f"question {question.id!r} ({question.category}) needs a reference answer; give "
            "--references, a file of FastChat's reference_answer"
        )
    return _numbered("ref_answer", known)


def _numbered(name: str, texts: Sequence[str]) -> dict[str, str]:
    return {f"{name}_{number}": text for number, text in enumerate(texts, 1)}


class MTBenchRatings(Suite):
    """Suite `mt_bench`: each answer is rated."""

    prompt_file = "mt_bench"
    prompt_names = PROMPT_NAMES
    unit = "of 10"
    categories = CATEGORIES
    turns = 2
    file_names: tuple[str, ...] = ("model_answer.jsonl", "single.jsonl")

    def check(self) -> None:
        """Check also that no reference answer is missing."""
        super().check()
        if self.config.step != "answer":
            for question in self.questions:
                _references(question, len(question.turns) - 1, self.references)

    def temperature(self, category: str) -> float:
        """Return the benchmark's temperature for a category."""
        return TEMPERATURES.get(category, 0.7)

    def calls(
        self, questions: Sequence[Question], model: Answers, _baseline: Answers | None
    ) -> list[Call]:
        judge = self.config.judging(temperature=0.0)
        return rating_calls(questions, model, self.references, self.prompts, judge=judge)

    def read(self, judgment: Mapping[str, Any]) -> Any:
        return rating_of(judgment)

    def shown(self, found: Any) -> str:
        return f"{found:g}"

    def parts(self, judgments: Judgments) -> dict[str, Part]:
        """Return the ratings of both turns."""
        return rating_parts(judgments)

    def more(self, judgments: Judgments) -> dict[str, Any]:
        """Return the mean rating of each turn."""
        means = {}
        for turn in sorted({judgment["turn"] for judgment in judgments}):
            parts = rating_parts(judgments, turn=turn).values()
            count = sum(part.denominator for part in parts)
            means[f"turn_{turn + 1}"] = sum(p.numerator for p in parts) / count if count else None
        return means

    def files(
        self,
        _questions: Sequence[Question],
        model: Answers,
        _baseline: Answers | None,
        judgments: Judgments,
    ) -> dict[str, str]:
        texts = answer_file(model), self.judgment_file(judgments)
        return dict(zip(self.file_names, texts, strict=True))

    def judgment_file(self, judgments: Judgments) -> str:
        """Return the judgments in FastChat's format."""
        return rating_file(judgments)


class MTBenchPairs(MTBenchRatings):
    """Suite `mt_bench` with `--pairwise`: each answer is compared with the baseline's."""

    unit = "% of wins against the baseline, a tie being half a win"
    even = 50.0
    file_names = ("model_answer.jsonl", "pair.jsonl")

    def calls(
        self, questions: Sequence[Question], model: Answers, baseline: Answers | None
    ) -> list[Call]:
        assert baseline is not None
        judge = self.config.judging(temperature=0.0)
        return pair_calls(questions, model, baseline, self.references, self.prompts, judge=judge)

    def read(self, judgment: Mapping[str, Any]) -> Verdict | None:
        return verdict_of(judgment)

    def shown(self, found: Verdict) -> str:
        return found

    def parts(self, judgments: Judgments) -> dict[str, Part]:
        """Return the wins in percent."""
        return pair_parts(judgments)

    def judged(self, judgments: Judgments) -> Iterator[Judged]:
        return judged(judgments)

    def outcomes(self, judgments: Judgments) -> dict[str, float]:
        """Return a win if more turns are won than lost, by the rule of the score."""
        decided = {id: part for id, part in self.parts(judgments).items() if part.denominator}
        shares = {id: part.numerator / part.denominator for id, part in decided.items()}
        return {id: (1 + (share > 50) - (share < 50)) / 2 for id, share in shares.items()}

    def more(self, judgments: Judgments) -> dict[str, Any]:
        """Return the numbers of wins, losses and ties."""
        counts = Counter(outcomes(judgments).values())
        return {"wins": counts["win"], "losses": counts["loss"], "ties": counts["tie"]}

    def judgment_file(self, judgments: Judgments) -> str:
        return pair_file(judgments)
