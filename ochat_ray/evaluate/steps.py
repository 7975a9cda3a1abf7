"""The steps of an evaluation: answer, judge, score.

    <output>/answers.jsonl      a record a call: what a model said in one turn
            /judgments.jsonl    a record a call: what the judge said
            /results.json       the scores, written whole or not at all
            /models/MODEL/...   what others read: alpaca_eval's files, FastChat's

Each can be run apart, and again: a call that has its record is not made twice.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ochat_ray.errors import UserError
from ochat_ray.evaluate.asking import (
    CHARACTERS_PER_TOKEN,
    Asker,
    Prices,
    Spent,
    answer,
    answer_call,
    for_all,
)
from ochat_ray.evaluate.bias import biases
from ochat_ray.evaluate.client import Client
from ochat_ray.evaluate.config import EvaluateConfig, key_for
from ochat_ray.evaluate.prompts import read_prompts
from ochat_ray.evaluate.questions import (
    Answers,
    Question,
    check_complete,
    read_answers,
    read_questions,
)
from ochat_ray.evaluate.records import Call, Records, key_of
from ochat_ray.evaluate.stats import Part, difference, estimate
from ochat_ray.evaluate.suites import Material, suite_of
from ochat_ray.progress import Progress
from ochat_ray.run_dir import RunDir

ANSWERS = "answers.jsonl"
JUDGMENTS = "judgments.jsonl"
RESULTS = "results.json"


class Evaluation:
    """One configuration's questions, prompts and records. Opens and closes its files by `with`."""

    def __init__(self, config: EvaluateConfig) -> None:
        if "://" in config.output:
            raise UserError(f"--output {config.output}: records are kept on this machine's disk")
        self.config = config
        self.questions = read_questions(config.questions, limit=config.limit)
        self.suite = suite_of(config)
        self.material = Material(
            questions=self.questions,
            prompts=read_prompts(
                config.prompts or None, suite=self.suite.prompts, names=self.suite.prompt_names
            ),
            references=read_answers(config.references) if config.references else None,
        )
        self.prices = Prices.read(config.prices)
        self._given = (
            read_answers(config.baseline_answers, model=config.baseline or None)
            if config.baseline_answers
            else None
        )
        self.baseline = self._given.model if self._given else config.baseline
        output = Path(config.output).expanduser()
        self.answers, self.judgments = Records(output / ANSWERS), Records(output / JUDGMENTS)

    def __enter__(self) -> Evaluation:
        return self

    def __exit__(self, *_error: object) -> None:
        self.answers.close()
        self.judgments.close()

    def to_answer(self) -> list[str]:
        """The models whose answers are asked for."""
        names = list(dict.fromkeys(self.config.model))
        asked = self.config.compares and not self._given and self.baseline not in names
        return [*names, self.baseline] if asked else names

    def answering(self, question: Question, model: str) -> dict[str, Any]:
        """The fields of a request for a model's answer, beside its messages."""
        return self.config.answering(model, self.suite.temperature(question.category))

    def answers_of(self, model: str) -> Answers:
        """What a model has said so far."""
        if self._given is not None and model == self.baseline:
            return self._given
        turns = {question.id: self._recorded(question, model) for question in self.questions}
        return Answers(model=model, turns=turns)

    def _recorded(self, question: Question, model: str) -> tuple[str, ...]:
        messages: list[dict[str, str]] = []
        for number, turn in enumerate(question.turns):
            messages.append({"role": "user", "content": turn})
            fields = self.answering(question, model)
            key = answer_call(question, number, messages, fields).key
            if key not in self.answers:
                break
            messages.append({"role": "assistant", "content": self.answers[key]["text"]})
        return tuple(message["content"] for message in messages[1::2])

    def judge_calls(self, model: str) -> list[Call]:
        """All that the judge is asked of one model.

        Raises:
            UserError: an answer is missing.
        """
        own = self.answers_of(model)
        baseline = self.answers_of(self.baseline) if self.config.compares else None
        for answers in (own, baseline):
            if answers is not None:
                check_complete(answers, self.questions)
        return self.suite.calls(self.material, own, baseline)


def run(config: EvaluateConfig) -> dict[str, Any]:
    """Do the step, or all of them; the result, or with `dry_run` what is left to do.

    Raises:
        UserError: a file is wrong, an endpoint refuses, or calls were given up.
    """
    with Evaluation(config) as evaluation:
        if config.dry_run:
            return left(evaluation)
        if config.step in ("all", "answer"):
            asyncio.run(_answer(evaluation))
        if config.step in ("all", "judge"):
            asyncio.run(_judge(evaluation))
        if config.step in ("all", "score"):
            return score(evaluation)
        return {"answers": len(evaluation.answers), "judgments": len(evaluation.judgments)}


async def _answer(evaluation: Evaluation) -> None:
    config, names = evaluation.config, evaluation.to_answer()
    total = sum(len(question.turns) for question in evaluation.questions) * len(names)
    progress = Progress("answer", "answers", total)
    async with AsyncExitStack() as stack:
        own = await stack.enter_async_context(_client(config, config.url))
        clients = dict.fromkeys(names, own)
        if config.baseline_url and evaluation.baseline in clients:
            clients[evaluation.baseline] = await stack.enter_async_context(
                _client(config, config.baseline_url)
            )
        spent = Spent()
        askers = {
            name: Asker(client, evaluation.answers, progress, evaluation.prices, spent)
            for name, client in clients.items()
        }
        failures = await for_all(
            [(name, question) for name in names for question in evaluation.questions],
            lambda one: answer(askers[one[0]], one[1], evaluation.answering(one[1], one[0])),
        )
    progress.finish(str(spent))
    _check(failures, total)


async def _judge(evaluation: Evaluation) -> None:
    config = evaluation.config
    calls = [call for name in config.model for call in evaluation.judge_calls(name)]
    progress = Progress("judge", "judgments", len(calls))
    async with _client(config, config.judge_url) as client:
        spent = Spent()
        asker = Asker(client, evaluation.judgments, progress, evaluation.prices, spent)
        failures = await for_all(calls, asker.ask)
    progress.finish(str(spent))
    _check(failures, len(calls))


def score(evaluation: Evaluation) -> dict[str, Any]:
    """The scores from the judgments of this configuration, and their files; no call is made.

    Raises:
        UserError: judgments are missing.
    """
    config = evaluation.config
    scores, parts = [], {}
    for model in dict.fromkeys(config.model):
        calls = evaluation.judge_calls(model)
        found = [
            evaluation.judgments[call.key] for call in calls if call.key in evaluation.judgments
        ]
        if len(found) < len(calls):
            raise UserError(
                f"{len(calls) - len(found)} of {len(calls)} judgments of {model} are missing; run "
                "the step `judge`"
            )
        one, parts[model] = _scored(evaluation, model, found)
        scores.append(one)
        _write_files(evaluation, model, found)
    first, *others = parts
    results = {
        "suite": config.suite,
        "unit": evaluation.suite.unit,
        "baseline": evaluation.baseline or None,
        "judge": config.judge,
        "scores": scores,
        "differences": [
            {
                "first": first,
                "second": other,
                **_json(difference(parts[first], parts[other], seed=config.seed)),
            }
            for other in others
        ],
        "questions": len(evaluation.questions),
        "questions_digest": key_of([asdict(question) for question in evaluation.questions]),
        "prompts_digest": evaluation.material.prompts.digest,
        "config": asdict(config),
        "version": version("ochat-ray"),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    RunDir.open(config.output).write_json(RESULTS, results)
    return results


def _write_files(
    evaluation: Evaluation, model: str, judgments: Sequence[Mapping[str, Any]]
) -> None:
    own = evaluation.answers_of(model)
    baseline = evaluation.answers_of(evaluation.baseline) if evaluation.config.compares else None
    run_dir = RunDir.open(evaluation.config.output)
    files = evaluation.suite.files(evaluation.material, own, baseline, judgments)
    for name, text in files.items():
        # A model's name may hold slashes, and dots.
        with run_dir.writing(f"models/{quote(model, safe='')}/{name}") as stream:
            stream.write(text.encode("utf-8", "replace"))


def _scored(
    evaluation: Evaluation, model: str, judgments: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Any], list[Part]]:
    config, questions, suite = evaluation.config, evaluation.questions, evaluation.suite
    failed = sum(suite.read(judgment) is None for judgment in judgments)
    rules = {"drop": suite.parts(judgments)}
    if suite.zero_parts is not None:
        rules["zero"] = suite.zero_parts(judgments)
    chosen = rules[config.failures]

    def estimated(parts: Mapping[str, Part], category: str | None = None) -> dict[str, Any]:
        some = [parts[q.id] for q in questions if category in (None, q.category)]
        return _json(estimate(some, seed=config.seed))

    one = {
        "model": model,
        **estimated(chosen),
        "judgments": len(judgments),
        "failed": failed,
        "not_judged": sum(not part.denominator for part in rules["drop"].values()),
        "by_category": {
            category: {"questions": count, **estimated(chosen, category)}
            for category, count in Counter(q.category for q in questions).items()
        },
        **suite.more(judgments),
    }
    if config.compares:
        one["biases"] = asdict(biases(suite.judged(judgments)))
    if failed and len(rules) > 1:
        # Both rules of 2023, where they differ.
        one["by_failures"] = {rule: estimated(parts) for rule, parts in rules.items()}
    return one, [chosen[question.id] for question in questions]


def left(evaluation: Evaluation) -> dict[str, Any]:
    """Calls, tokens and cost that are left; tokens are estimates, answers at their limit."""
    config, counted = evaluation.config, {}
    names = evaluation.to_answer() if config.step in ("all", "answer") else []
    for name in names:
        spent, known = Spent(), evaluation.answers_of(name)
        for question in evaluation.questions:
            said = len(known.turns[question.id])
            for turn in range(said, len(question.turns)):
                characters = sum(map(len, question.turns[: turn + 1]))
                prompt = characters // CHARACTERS_PER_TOKEN + (turn - said) * config.max_tokens
                spent.add(name, prompt, config.max_tokens, evaluation.prices)
        counted[f"answers of {name}"] = spent
    if config.step in ("all", "judge"):
        counted[f"judgments by {config.judge}"] = _judgments_left(evaluation)
    return {what: asdict(spent) for what, spent in counted.items()}


def _judgments_left(evaluation: Evaluation) -> Spent:
    config, spent = evaluation.config, Spent()
    unknown = "x" * config.max_tokens * CHARACTERS_PER_TOKEN

    def filled(model: str) -> Answers:
        known = evaluation.answers_of(model).turns
        turns = {
            q.id: known.get(q.id, ()) + (unknown,) * (len(q.turns) - len(known.get(q.id, ())))
            for q in evaluation.questions
        }
        return Answers(model=model, turns=turns)

    baseline = filled(evaluation.baseline) if config.compares else None
    for name in config.model:
        for call in evaluation.suite.calls(evaluation.material, filled(name), baseline):
            if call.key not in evaluation.judgments:
                characters = sum(len(message["content"]) for message in call.body["messages"])
                spent.add(
                    config.judge, characters // CHARACTERS_PER_TOKEN, config.judge_max_tokens,
                    evaluation.prices,
                )  # fmt: skip
    return spent


def _client(config: EvaluateConfig, url: str) -> Client:
    return Client(
        url, key_for(url), at_once=config.at_once, timeout_s=config.timeout_s,
        attempts=config.attempts,
    )  # fmt: skip


def _check(failures: Sequence[str], total: int) -> None:
    if failures:
        raise UserError(
            f"{len(failures)} of {total} calls were given up, first: {failures[0]}; what came is "
            "kept, run it again for the rest"
        )


def _json(estimated: Any) -> dict[str, float | None]:
    if estimated is None:
        return {"score": None, "low": None, "high": None}
    return {"score": estimated.value, "low": estimated.low, "high": estimated.high}
