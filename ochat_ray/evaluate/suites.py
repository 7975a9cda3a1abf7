"""Common interface of the suites: judge calls, and the scores computed from judgments."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ochat_ray.errors import UserError
from ochat_ray.evaluate import alpaca, arena_hard, code_tasks, mt_bench, vicuna
from ochat_ray.evaluate.bias import Judged
from ochat_ray.evaluate.config import EvaluateConfig
from ochat_ray.evaluate.length_control import Difficulty, length_controlled, read_difficulty
from ochat_ray.evaluate.prompts import Prompts
from ochat_ray.evaluate.questions import Answers, Question
from ochat_ray.evaluate.records import Call
from ochat_ray.evaluate.stats import Part
from ochat_ray.evaluate.verdicts import rating_of, scores_of, verdict_of, votes_of

Judgments = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Material:
    """Questions, judge prompts and reference answers of an evaluation."""

    questions: Sequence[Question]
    prompts: Prompts
    references: Answers | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Suite:
    """Rules for judging answers and for scoring judgments.

    Attributes:
        prompts: Name of our own prompt file.
        prompt_names: Placeholders that a judge prompt may contain.
        unit: Unit of the score.
        even: Score of the baseline against itself; None if nothing is compared.
        categories: Valid question categories; None for any.
        turns: Maximum turns of a question that the judge is shown.
        temperature: Returns the temperature of answers to a category.
        calls: Returns the judge calls for the model's and the baseline's answers.
        read: Parses a judgment; None if it is unreadable.
        shown: Formats a parsed judgment for the report.
        parts: Returns each question's contribution to the score, without unreadable judgments.
        zero_parts: Same, with unreadable judgments as zeros.
        questions: The questions, if the suite has a file format of its own.
        runs_code: Whether a call is a program to run in a sandbox, instead of one to a judge.
        votes: Whether a question's part counts votes, with which it enters the ratings.
        check: Checks that the suite can score these questions; raises `UserError`.
        judged: Yields comparisons for the bias statistics.
        more: Returns additional entries of results.json.
        files: Returns additional output files, in the formats of other projects.
    """

    prompts: str
    prompt_names: frozenset[str]
    unit: str
    even: float | None
    categories: frozenset[str] | None
    turns: int
    temperature: Callable[[str], float]
    calls: Callable[[Material, Answers, Answers | None], list[Call]]
    read: Callable[[Mapping[str, Any]], Any]
    shown: Callable[[Any], str]
    parts: Callable[[Judgments], dict[str, Part]]
    zero_parts: Callable[[Judgments], dict[str, Part]] | None = None
    votes: bool = False
    questions: Sequence[Question] | None = None
    runs_code: bool = False
    check: Callable[[Sequence[Question]], None] = lambda _questions: None
    judged: Callable[[Judgments], Iterable[Judged]] = lambda _judgments: ()
    more: Callable[[Material, Judgments], dict[str, Any]] = lambda _material, _judgments: {}
    files: Callable[[Material, Answers, Answers | None, Judgments], dict[str, str]] = (
        lambda _material, _model, _baseline, _judgments: {}
    )


def suite_of(config: EvaluateConfig) -> Suite:
    """Return the suite that the configuration names."""
    if config.suite == "vicuna":
        return _vicuna(config)
    if config.suite == "alpaca_eval":
        return _alpaca(config)
    if config.suite == "arena_hard":
        return _arena_hard(config)
    if config.suite == "code":
        return _code(config)
    ratings = _ratings(config)
    return _pairs(config, ratings) if config.pairwise else ratings


def _vicuna(config: EvaluateConfig) -> Suite:
    def calls(material: Material, model: Answers, baseline: Answers | None) -> list[Call]:
        assert baseline is not None
        return vicuna.calls(
            material.questions, model, baseline, material.prompts,
            judge=config.judging(temperature=1.0), samples=config.samples,
        )  # fmt: skip

    return Suite(
        prompts="vicuna",
        prompt_names=vicuna.PROMPT_NAMES,
        unit="% of the baseline's score",
        even=100.0,
        categories=vicuna.CATEGORIES,
        turns=1,
        temperature=lambda _category: 0.7,
        calls=calls,
        read=scores_of,
        shown=lambda scores: f"{scores[0]:g} to {scores[1]:g}",
        parts=partial(vicuna.parts, failures="drop"),
        zero_parts=partial(vicuna.parts, failures="zero"),
        judged=vicuna.judged,
    )


def _arena_hard(config: EvaluateConfig) -> Suite:
    def calls(material: Material, model: Answers, baseline: Answers | None) -> list[Call]:
        assert baseline is not None
        return arena_hard.calls(
            material.questions, model, baseline, material.prompts,
            judge=config.judging(temperature=0.0),
        )  # fmt: skip

    return Suite(
        prompts="arena_hard",
        prompt_names=arena_hard.PROMPT_NAMES,
        unit="% of votes against the baseline, three for a clear verdict",
        even=50.0,
        categories=None,
        turns=1,
        temperature=lambda _category: 0.0,
        calls=calls,
        read=votes_of,
        shown=arena_hard.shown,
        parts=arena_hard.parts,
        judged=arena_hard.judged,
        votes=True,
    )


def _code(config: EvaluateConfig) -> Suite:
    problems = code_tasks.read_problems(config.questions, limit=config.limit)
    return Suite(
        prompts="",
        prompt_names=frozenset(),
        unit="% of problems solved (pass@1)",
        even=None,
        categories=None,
        turns=1,
        temperature=lambda _category: 0.0,
        questions=[problem.question for problem in problems.values()],
        runs_code=True,
        calls=lambda material, model, _baseline: code_tasks.calls(
            problems, material.questions, model, config.code_timeout_s
        ),
        read=code_tasks.reason_of,
        shown=str,
        parts=code_tasks.parts,
        more=lambda _material, judgments: {
            "executions": dict(Counter(map(code_tasks.reason_of, judgments)))
        },
    )


def _alpaca(config: EvaluateConfig) -> Suite:
    def calls(material: Material, model: Answers, baseline: Answers | None) -> list[Call]:
        assert baseline is not None
        return alpaca.calls(
            material.questions, model, baseline, material.prompts,
            judge=config.judging(temperature=0.0), weighted=config.weighted,
        )  # fmt: skip

    difficulty = read_difficulty(config.difficulty) if config.difficulty else None

    def files(
        material: Material, model: Answers, baseline: Answers | None, judgments: Judgments
    ) -> dict[str, str]:
        assert baseline is not None
        return alpaca.files(material.questions, model, baseline, judgments, config.judge)

    return Suite(
        prompts="alpaca_eval",
        prompt_names=alpaca.PROMPT_NAMES,
        unit="% of wins against the baseline",
        even=50.0,
        categories=None,
        turns=1,
        temperature=lambda _category: 0.7,
        calls=calls,
        read=alpaca.second_preferred,
        shown=lambda share: f"{1 - share:.2g} to {share:.2g}",
        parts=alpaca.parts,
        judged=alpaca.judged,
        more=partial(_leaderboard_row, difficulty),
        check=partial(_check_difficulty, difficulty),
        files=files,
    )


def _leaderboard_row(
    difficulty: Difficulty | None, material: Material, judgments: Judgments
) -> dict[str, Any]:
    positions = {question.id: index for index, question in enumerate(material.questions)}
    lengths = {j["question_id"]: j["lengths"] for j in judgments if j["model_first"]}
    preferences = alpaca.preferences(judgments)
    controlled = length_controlled(
        [preferences[id] for id in lengths],
        [(baseline, model) for model, baseline in lengths.values()],
        difficulty,
        [positions[id] for id in lengths],
    )
    average = sum(model for model, _ in lengths.values()) / len(lengths)
    return alpaca.win_rate(preferences.values()) | {"avg_length": int(average)} | controlled


def _check_difficulty(difficulty: Difficulty | None, questions: Sequence[Question]) -> None:
    missing = set(range(len(questions))) - set(difficulty.by_index) if difficulty else ()
    if difficulty and missing:
        raise UserError(
            f"--difficulty has no row for {len(missing)} of {len(questions)} questions; it is for "
            f"alpaca_eval's own {len(difficulty.by_index)} questions, in their order"
        )


def _ratings(config: EvaluateConfig) -> Suite:
    def calls(material: Material, model: Answers, _baseline: Answers | None) -> list[Call]:
        return mt_bench.rating_calls(
            material.questions, model, material.references, material.prompts,
            judge=config.judging(temperature=0.0),
        )  # fmt: skip

    return Suite(
        prompts="mt_bench",
        prompt_names=mt_bench.PROMPT_NAMES,
        unit="of 10",
        even=None,
        categories=mt_bench.CATEGORIES,
        turns=2,
        temperature=lambda category: mt_bench.TEMPERATURES.get(category, 0.7),
        calls=calls,
        read=rating_of,
        shown=lambda rating: f"{rating:g}",
        parts=mt_bench.rating_parts,
        more=_means_by_turn,
        files=lambda _material, model, _baseline, judgments: {
            "model_answer.jsonl": mt_bench.answer_file(model),
            "single.jsonl": mt_bench.rating_file(judgments),
        },
    )


def _pairs(config: EvaluateConfig, ratings: Suite) -> Suite:
    def calls(material: Material, model: Answers, baseline: Answers | None) -> list[Call]:
        assert baseline is not None
        return mt_bench.pair_calls(
            material.questions, model, baseline, material.references, material.prompts,
            judge=config.judging(temperature=0.0),
        )  # fmt: skip

    return replace(
        ratings,
        unit="% of wins against the baseline, a tie being half a win",
        even=50.0,
        calls=calls,
        read=verdict_of,
        shown=str,
        parts=mt_bench.pair_parts,
        judged=mt_bench.judged,
        more=_outcomes,
        files=lambda _material, model, _baseline, judgments: {
            "model_answer.jsonl": mt_bench.answer_file(model),
            "pair.jsonl": mt_bench.pair_file(judgments),
        },
    )


def _means_by_turn(_material: Material, judgments: Judgments) -> dict[str, Any]:
    means = {}
    for turn in sorted({judgment["turn"] for judgment in judgments}):
        parts = mt_bench.rating_parts(judgments, turn=turn).values()
        count = sum(part.denominator for part in parts)
        means[f"turn_{turn + 1}"] = sum(p.numerator for p in parts) / count if count else None
    return means


def _outcomes(_material: Material, judgments: Judgments) -> dict[str, Any]:
    counts = Counter(mt_bench.outcomes(judgments).values())
    return {"wins": counts["win"], "losses": counts["loss"], "ties": counts["tie"]}
