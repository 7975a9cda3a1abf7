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
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import asdict
from functools import partial
from typing import Any

from ochat_ray.errors import UserError
from ochat_ray.evaluate.asking import CHARACTERS_PER_TOKEN, Asker, Spent, answer, for_all
from ochat_ray.evaluate.client import Client, sendable_key
from ochat_ray.evaluate.config import EvaluateConfig
from ochat_ray.evaluate.identities import EMPTY
from ochat_ray.evaluate.key_files import Role, key_for
from ochat_ray.evaluate.questions import Answers, Question
from ochat_ray.evaluate.records import FAILED, Call
from ochat_ray.evaluate.scoring import score
from ochat_ray.evaluate.session import Session
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
    with Session(config, endpoint_names) as session:
        for note in session.suite.notes():
            print(note, file=sys.stderr)
        if config.dry_run:
            return left(session)
        answers, judges = (config.step in ("all", step) for step in ("answer", "judge"))
        asks_judge = judges and not session.suite.local_judge
        urls: dict[Role, str] = {
            "models": config.url if answers else "",
            "baseline": config.baseline_url if answers else "",
            "judge": config.judge_url if asks_judge else "",
        }
        at = partial(_connected, connect, config, _keys(config, urls))
        if answers:
            asyncio.run(_answer(session, at))
        if asks_judge:
            asyncio.run(_judge(session, at))
        elif judges:
            _judge_locally(session)
        if config.step in ("all", "score", "report"):
            return score(session)
        return {"answers": len(session.answers), "judgments": len(session.judgments)}


async def _answer(session: Session, at: At) -> None:
    config, names = session.config, session.to_answer()
    total = sum(len(question.turns) for question in session.questions) * len(names)
    progress = Progress("answer", "answers", total)
    async with AsyncExitStack() as stack:
        own = await stack.enter_async_context(at("models", config.url))
        clients = dict.fromkeys(names, own)
        if config.baseline_url and session.baseline in clients:
            clients[session.baseline] = await stack.enter_async_context(
                at("baseline", config.baseline_url)
            )
        for name, client in clients.items():
            session.identities.describe("models", name, await client.describe(name))
        session.budget.start_step()
        askers = {
            name: Asker(
                client, session.answers, progress, session.budget,
                again=session.answered_again,
                max_concurrency=config.max_concurrency,
            )
            for name, client in clients.items()
        }  # fmt: skip

        async def ask(one: tuple[str, Question]) -> None:
            name, question = one
            fields = session.answering(question, name)
            await answer(askers[name], question, fields, session.identities.version("models", name))

        failures = await for_all(
            [(name, question) for name in names for question in session.questions], ask
        )
    progress.finish(str(session.budget.spent))
    _check(failures, total, askers)


async def _judge(session: Session, at: At) -> None:
    config = session.config
    async with at("judge", config.judge_url) as client:
        session.identities.describe("judges", config.judge, await client.describe(config.judge))
        calls = _judge_calls(session)
        progress = Progress("judge", "judgments", len(calls))
        session.budget.start_step()
        asker = Asker(
            client, session.judgments, progress, session.budget,
            again=session.judged_again,
            max_concurrency=config.max_concurrency,
        )  # fmt: skip
        failures = await for_all(calls, asker.ask)
    progress.finish(str(session.budget.spent))
    _check(failures, len(calls), {config.judge: asker})


def _judge_locally(session: Session) -> None:
    """Decide what has no record, as many judgments at once as there are processors."""
    calls = _judge_calls(session)
    progress = Progress("judge", session.suite.judgment_unit, len(calls))
    left = [call for call in calls if call.key not in session.judgments]
    progress.add(len(calls) - len(left))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for call, found in zip(left, pool.map(session.suite.decide, left), strict=True):
            session.judgments.add(call.key, {**call.about, **found})
            progress.add(1)
    progress.finish("")


def left(session: Session) -> dict[str, Any]:
    """Return the remaining calls, tokens and cost.

    Token counts are estimates in which answers reach their limit.
    """
    config, counted = session.config, {}
    names = session.to_answer() if config.step in ("all", "answer") else []
    for name in names:
        spent = Spent()
        for question in session.questions:
            records = session.answer_records(question, name)
            kept = [not session.answered_again(record) for record in records]
            if all(kept) and any(FAILED in record for record in records):
                continue
            said = [*kept, False].index(False)
            for turn in range(said, len(question.turns)):
                texts = [*(text for _, text in question.context), *question.turns[: turn + 1]]
                characters = sum(map(len, texts))
                prompt = characters // CHARACTERS_PER_TOKEN + (turn - said) * config.max_tokens
                spent.add(name, prompt, config.max_tokens, session.prices)
        counted[f"answers of {name}"] = spent
    if config.step in ("all", "judge") and not session.suite.local_judge:
        counted[f"judgments by {config.judge}"] = _judgments_left(session)
    return {what: asdict(spent) for what, spent in counted.items()}


def _judgments_left(session: Session) -> Spent:
    config, spent = session.config, Spent()
    unknown = "x" * config.max_tokens * CHARACTERS_PER_TOKEN

    def filled(model: str) -> Answers:
        known = session.answers_of(model).turns
        turns = {
            q.id: known.get(q.id, ()) + (unknown,) * (len(q.turns) - len(known.get(q.id, ())))
            for q in session.questions
        }
        return Answers(model=model, turns=turns)

    baseline = filled(session.baseline) if config.compares else None
    for name in session.models:
        for call in _unique(session.calls(filled(name), baseline, session.questions)):
            record = session.judgments.get(call.key)
            if record is None or session.judged_again(record):
                characters = sum(len(message["content"]) for message in call.body["messages"])
                spent.add(
                    config.judge,
                    characters // CHARACTERS_PER_TOKEN,
                    config.judge_max_tokens,
                    session.prices,
                )
    return spent


def _judge_calls(session: Session) -> list[Call]:
    return _unique(call for name in session.models for call in session.judge_calls(name))


def _unique(calls: Iterable[Call]) -> list[Call]:
    """Return the calls with distinct keys: two models may have given the same answer."""
    return list({call.key: call for call in calls}.values())


def _keys(config: EvaluateConfig, urls: Mapping[Role, str]) -> dict[Role, str]:
    """Return the keys of the endpoints, all before the first call."""
    return {
        role: sendable_key(key_for(role, url, config.url), url) for role, url in urls.items() if url
    }


def _connected(
    connect: Connect, config: EvaluateConfig, keys: Mapping[Role, str], role: Role, url: str
) -> Client:
    return connect(
        url,
        keys[role],
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
