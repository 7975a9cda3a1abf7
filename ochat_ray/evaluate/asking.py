"""Make each missing call once, record it and count its tokens and cost."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from ochat_ray.errors import UserError
from ochat_ray.evaluate.client import CallFailedError, Endpoint
from ochat_ray.evaluate.questions import Question
from ochat_ray.evaluate.records import Call, Records, key_of
from ochat_ray.evaluate.replies import Reply
from ochat_ray.progress import Progress

Item = TypeVar("Item")

CHARACTERS_PER_TOKEN = 4
"""Typical characters per token of English text, for the estimate before the first call."""


@dataclass(frozen=True, slots=True)
class Prices:
    """US dollars per million prompt and completion tokens, by model."""

    table: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | None) -> Prices:
        """Read `{"gpt-4": {"prompt": 30, "completion": 60}}`; without a path, no price is known.

        Raises:
            UserError: The file does not have this form.
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
        """Return the cost in US dollars; None if the model has no price."""
        if model not in self.table:
            return None
        prompt, completion = self.table[model]
        return (prompt * prompt_tokens + completion * completion_tokens) / 1e6


@dataclass(kw_only=True)
class Spent:
    """Number, tokens and cost of calls."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    dollars: float = 0.0
    priced: bool = True

    def add(self, model: str, prompt: int, completion: int, prices: Prices) -> None:
        """Count one call."""
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
    """Sends the calls that have no record to one endpoint, and writes their records."""

    def __init__(
        self, client: Endpoint, records: Records, progress: Progress, prices: Prices, spent: Spent
    ) -> None:
        self._client, self._records = client, records
        self._progress, self._prices, self._spent = progress, prices, spent

    async def ask(self, call: Call) -> str:
        """Return the text of the call's record, making the call first if there is none.

        Raises:
            UserError, CallFailedError: See `Client.chat`.
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
    """Run `work` on all items concurrently; return the messages of the calls that failed.

    Raises:
        UserError, OSError: An item raised it (a full disk, for example); the others are cancelled.
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
    """Return a model's answers to all turns of a question, each with the previous turns as context.

    `fields` are the fields of the request other than its messages: model, temperature, max_tokens.
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
    """Return the call for turn `number`, given the messages so far.

    Args:
        question: The question that is answered.
        number: Index of the turn, from 0.
        messages: The conversation so far, ending with the user's message.
        fields: Fields of the request other than its messages.
        version: Identifies the weights behind the model's name, where known.
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
    more = {
        "logprobs": reply.logprobs, "reasoning": reply.reasoning, "changed": reply.changed,
        "attempts": reply.attempts if reply.attempts > 1 else 0,
    }  # fmt: skip
    return record | {name: value for name, value in more.items() if value}
