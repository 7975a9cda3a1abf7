"""Calls that are made once: those without a record, with what they spend."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from ochat_ray.errors import UserError
from ochat_ray.evaluate.client import CallFailedError, Endpoint, Reply
from ochat_ray.evaluate.questions import Question
from ochat_ray.evaluate.records import Call, Records, key_of
from ochat_ray.progress import Progress

Item = TypeVar("Item")

CHARACTERS_PER_TOKEN = 4
"""What a token comes to in English, for the estimate before the first call."""


@dataclass(frozen=True, slots=True)
class Prices:
    """US dollars for a million tokens, in and out, by model."""

    table: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | None) -> Prices:
        """From `{"gpt-4": {"prompt": 30, "completion": 60}}`; without a path, none are known.

        Raises:
            UserError: the file is not of this form.
        """
        if not path:
            return cls()
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls(
                {name: (float(p["prompt"]), float(p["completion"])) for name, p in found.items()}
            )
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f"--prices {path}: {type(error).__name__} {error}; give "
                '{"MODEL": {"prompt": USD, "completion": USD}} for a million tokens'
            ) from error

    def of(self, model: str, prompt_tokens: int, completion_tokens: int) -> float | None:
        """US dollars; None where the model has no price."""
        if model not in self.table:
            return None
        prompt, completion = self.table[model]
        return (prompt * prompt_tokens + completion * completion_tokens) / 1e6


@dataclass(kw_only=True)
class Spent:
    """What calls took."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    dollars: float = 0.0
    priced: bool = True

    def add(self, model: str, prompt: int, completion: int, prices: Prices) -> None:
        """One call more."""
        self.calls += 1
        self.prompt_tokens += prompt
        self.completion_tokens += completion
        price = prices.of(model, prompt, completion)
        self.dollars += price or 0.0
        self.priced = self.priced and price is not None

    def __str__(self) -> str:
        tokens = f"{self.prompt_tokens:,} + {self.completion_tokens:,} tokens"
        return tokens + (f" · ${self.dollars:,.2f}" if self.priced and self.calls else "")


class Asker:
    """Asks one endpoint what has no record yet, and writes the records."""

    def __init__(
        self, client: Endpoint, records: Records, progress: Progress, prices: Prices, spent: Spent
    ) -> None:
        self._client, self._records = client, records
        self._progress, self._prices, self._spent = progress, prices, spent

    async def ask(self, call: Call) -> str:
        """The text of the call's record, after making the call if there is none.

        Raises:
            UserError, CallFailedError: see `Client.chat`.
        """
        if call.key not in self._records:
            reply = await self._client.chat(call.body)
            self._records.add(call.key, {**call.about, **_record(reply)})
            self._spent.add(
                call.body["model"], reply.prompt_tokens, reply.completion_tokens, self._prices
            )
        self._progress.add(1, str(self._spent))
        return str(self._records[call.key]["text"])


async def for_all(items: Iterable[Item], work: Callable[[Item], Awaitable[Any]]) -> list[str]:
    """Do the work for each at the same time; why it failed, for those that were given up.

    Raises:
        UserError, OSError: one of them raised it, such as for a full disk; the others are stopped.
    """
    failures: list[str] = []

    async def one(item: Item) -> None:
        try:
            await work(item)
        except CallFailedError as error:
            failures.append(str(error))

    try:
        async with asyncio.TaskGroup() as group:
            for item in items:
                group.create_task(one(item))
    except ExceptionGroup as errors:
        # Not except*: Python 3.11.0 to 3.11.3 wrap what is raised inside it (cpython gh-103590).
        expected, others = errors.split((UserError, OSError))
        if expected is None or others is not None:
            raise
        raise expected.exceptions[0] from None
    return failures


async def answer(
    asker: Asker, question: Question, fields: Mapping[str, Any], version: str = ""
) -> tuple[str, ...]:
    """A model's answers to a question's turns, each after those before it.

    `fields` are those of the request beside its messages: model, temperature, max_tokens.
    """
    messages: list[dict[str, str]] = []
    for number, turn in enumerate(question.turns):
        messages.append({"role": "user", "content": turn})
        text = await asker.ask(answer_call(question, number, messages, fields, version))
        messages.append({"role": "assistant", "content": text})
    return tuple(message["content"] for message in messages[1::2])


def answer_call(
    question: Question,
    number: int,
    messages: Sequence[dict[str, str]],
    fields: Mapping[str, Any],
    version: str = "",
) -> Call:
    """The call for the turn of that number, after the messages so far.

    `version` tells two models of one name apart, where it is known.
    """
    body = {**fields, "messages": list(messages)}
    about = {
        "question_id": question.id, "category": question.category, "turn": number,
        "model": fields["model"],
    }  # fmt: skip
    known = (version,) if version else ()
    return Call(key=key_of("answer", question.id, number, body, *known), body=body, about=about)


def _record(reply: Reply) -> dict[str, Any]:
    record: dict[str, Any] = {
        "text": reply.text, "finish_reason": reply.finish_reason,
        "prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.completion_tokens,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip
    return record | ({"logprobs": reply.logprobs} if reply.logprobs else {})
