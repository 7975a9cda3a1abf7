"""Run the steps of an evaluation: answer, judge, score.

Files:

    <output>/answers.jsonl      one record per call: a model's answer in one turn
            /judgments.jsonl    one record per call: a judgment
            /report.html        scores and transcripts, for people; results.md, a table
            /models/MODEL/...   exports: alpaca_eval's files, FastChat's files
            /results.json       the scores, written last

Each step can be run separately and repeatedly: a recorded call is not repeated.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from ochat_ray.errors import UserError
from ochat_ray.evaluate import sandbox
from ochat_ray.evaluate.asking import CHARACTERS_PER_TOKEN, Asker, Spent, answer, for_all
from ochat_ray.evaluate.client import Client
from ochat_ray.evaluate.config import UNIT_TESTS, EvaluateConfig, Role, key_for
from ochat_ray.evaluate.evaluation import EMPTY, Evaluation
from ochat_ray.evaluate.questions import Answers, Question
from ochat_ray.evaluate.records import FAILED, Call
from ochat_ray.evaluate.scoring import score
from ochat_ray.progress import Progress

Connect = Callable[..., Client]
"""Factory of a client, with the arguments of `Client`."""

At = Callable[[Role, str], AbstractAsyncContextManager[Client]]
"""Factory of a client, with the endpoint's role and base URL as its arguments."""


def run(
    config: EvaluateConfig,
    connect: Connect = Client,
    endpoint_names: Mapping[str, str] = EMPTY,
) -> dict[str, Any]:
    """Run one step or all; return the result, or with `dry_run` the remaining work.

    `endpoint_names` are names of endpoints by base URL, where the URL changes from run to run.

    Raises:
        UserError: A file is invalid, an endpoint rejects requests, or calls failed.
    """
    if config.suite == "code":
        config = replace(config, judge=UNIT_TESTS)
    with Evaluation(config, endpoint_names) as evaluation:
        if config.dry_run:
            return left(evaluation)
        runs_code = evaluation.suite.runs_code
        if runs_code and config.step in ("all", "judge"):
            sandbox.check()
        if config.step in ("all", "answer"):
            asyncio.run(_answer(evaluation, partial(_connected, connect, config)))
        if config.step in ("all", "judge") and runs_code:
            _run_code(evaluation)
        elif config.step in ("all", "judge"):
            asyncio.run(_judge(evaluation, partial(_connected, connect, config)))
        if config.step in ("all", "score", "report"):
            return score(evaluation)
        return {"answers": len(evaluation.answers), "judgments": len(evaluation.judgments)}


async def _answer(evaluation: Evaluation, at: At) -> None:
    config, names = evaluation.config, evaluation.to_answer()
    total = sum(len(question.turns) for question in evaluation.questions) * len(names)
    progress = Progress("answer", "answers", total)
    async with AsyncExitStack() as stack:
        own = await stack.enter_async_context(at("models", config.url))
        clients = dict.fromkeys(names, own)
        if config.baseline_url and evaluation.baseline in clients:
            clients[evaluation.baseline] = await stack.enter_async_context(
                at("baseline", config.baseline_url)
            )
        for name, client in clients.items():
            evaluation.describe("models", name, await client.describe(name))
        evaluation.budget.start_step()
        askers = {
            name: Asker(
                client, evaluation.answers, progress, evaluation.budget,
                again=partial(_answered_again, evaluation),
                max_concurrency=config.max_concurrency,
            )
            for name, client in clients.items()
        }  # fmt: skip

        async def ask(one: tuple[str, Question]) -> None:
            name, question = one
            fields = evaluation.answering(question, name)
            await answer(askers[name], question, fields, evaluation.version("models", name))

        failures = await for_all(
            [(name, question) for name in names for question in evaluation.questions], ask
        )
    progress.finish(str(evaluation.budget.spent))
    _check(failures, total, askers)


async def _judge(evaluation: Evaluation, at: At) -> None:
    config = evaluation.config
    async with at("judge", config.judge_url) as client:
        evaluation.describe("judges", config.judge, await client.describe(config.judge))
        calls = _unique(call for name in evaluation.models for call in evaluation.judge_calls(name))
        progress = Progress("judge", "judgments", len(calls))
        evaluation.budget.start_step()
        asker = Asker(
            client, evaluation.judgments, progress, evaluation.budget,
            again=partial(_judged_again, evaluation),
            max_concurrency=config.max_concurrency,
        )  # fmt: skip
        failures = await for_all(calls, asker.ask)
    progress.finish(str(evaluation.budget.spent))
    _check(failures, len(calls), {config.judge: asker})


def _run_code(evaluation: Evaluation) -> None:
    """Run the programs that have no record, as many at once as there are processors."""
    calls = _unique(call for name in evaluation.models for call in evaluation.judge_calls(name))
    progress = Progress("judge", "programs", len(calls))
    left = [call for call in calls if call.key not in evaluation.judgments]
    progress.add(len(calls) - len(left))
    timeout_s = evaluation.config.code_timeout_s

    def outcome(call: Call) -> sandbox.Outcome:
        return sandbox.run(call.body["program"], timeout_s=timeout_s)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for call, found in zip(left, pool.map(outcome, left), strict=True):
            record = {**call.about, "reason": found.reason, "text": found.output}
            evaluation.judgments.add(call.key, record)
            progress.add(1)
    progress.finish("")


def _answered_again(evaluation: Evaluation, record: Mapping[str, Any]) -> bool:
    """Return whether the call of a recorded answer is made again."""
    retry = evaluation.config.retry
    return ("failed" if FAILED in record else "empty") in retry and not record["text"].strip()


def _judged_again(evaluation: Evaluation, record: Mapping[str, Any]) -> bool:
    """Return whether the call of a recorded judgment is made again; an empty one is none."""
    retry = evaluation.config.retry
    if FAILED in record:
        return "failed" in retry
    is_empty = not record["text"].strip()
    return is_empty or ("unreadable" in retry and evaluation.suite.read(record) is None)


def left(evaluation: Evaluation) -> dict[str, Any]:
    """Return the remaining calls, tokens and cost.

    Token counts are estimates in which answers reach their limit.
    """
    config, counted = evaluation.config, {}
    names = evaluation.to_answer() if config.step in ("all", "answer") else []
    for name in names:
        spent = Spent()
        for question in evaluation.questions:
            records = evaluation.answer_records(question, name)
            kept = [not _answered_again(evaluation, record) for record in records]
            if all(kept) and any(FAILED in record for record in records):
                continue
            said = [*kept, False].index(False)
            for turn in range(said, len(question.turns)):
                characters = sum(map(len, question.turns[: turn + 1]))
                prompt = characters // CHARACTERS_PER_TOKEN + (turn - said) * config.max_tokens
                spent.add(name, prompt, config.max_tokens, evaluation.prices)
        counted[f"answers of {name}"] = spent
    if config.step in ("all", "judge") and not evaluation.suite.runs_code:
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
    for name in evaluation.models:
        for call in _unique(evaluation.calls(filled(name), baseline, evaluation.questions)):
            record = evaluation.judgments.get(call.key)
            if record is None or _judged_again(evaluation, record):
                characters = sum(len(message["content"]) for message in call.body["messages"])
                spent.add(
                    config.judge, characters // CHARACTERS_PER_TOKEN, config.judge_max_tokens,
                    evaluation.prices,
                )  # fmt: skip
    return spent


def _unique(calls: Iterable[Call]) -> list[Call]:
    """Return the calls with distinct keys: two models may have given the same answer."""
    return list({call.key: call for call in calls}.values())


def _connected(connect: Connect, config: EvaluateConfig, role: Role, url: str) -> Client:
    return connect(
        url,
        key_for(role, url, config.url),
        max_concurrency=config.max_concurrency,
        timeout_s=config.timeout_s,
        attempts=config.attempts,
    )


def _check(failures: Sequence[str], total: int, askers: Mapping[str, Asker]) -> None:
    """Record what was refused.

    Raises:
        UserError: Other calls failed, or a model refused all.
    """
    for name, asker in askers.items():
        if reason := asker.record_refused():
            raise UserError(f"{name}: {reason}")
    if failures:
        raise UserError(
            f"{len(failures)} of {total} calls failed, first: {failures[0]}; the other "
            "results are kept; run the command again for the rest"
        )
