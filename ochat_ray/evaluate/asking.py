"""Make each missing call once, record it and count its tokens and cost."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from ochat_ray.errors import UserError
from ochat_ray.evaluate.client import CallFailedError, Client, RefusedError
from ochat_ray.evaluate.questions import Question
from ochat_ray.evaluate.records import FAILED, Call, Records, key_of
from ochat_ray.evaluate.replies import Reply
from ochat_ray.progress import Progress

Item = TypeVar("Item")

CHARACTERS_PER_TOKEN = 4
"""Typical characters per token of English text, for the estimate before the first call."""

BYTES_PER_TOKEN = 3
"""Fewer than typical in any language, for the most that a call may cost."""


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
                {name: (_price(p["prompt"]), _price(p["completion"])) for name, p in found.items()}
            )
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
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


def _price(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"{value!r} is no price")
    return float(value)


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


class Budget:
    """Spending of one command, with an optional maximum in US dollars."""

    def __init__(self, prices: Prices, max_cost: float | None = None) -> None:
        self._prices, self._max_cost = prices, max_cost
        self._reserved = self._dollars = 0.0
        self.spent = Spent()

    def add(self, model: str, prompt_tokens: int, completion_tokens: int) -> None:
        """Count one call."""
        self.spent.add(model, prompt_tokens, completion_tokens, self._prices)
        self._dollars += self._prices.of(model, prompt_tokens, completion_tokens) or 0.0

    def start_step(self) -> None:
        """Count the calls of the next step from zero; what was spent stays spent."""
        self.spent = Spent()

    @contextmanager
    def reserved(self, body: Mapping[str, Any]) -> Iterator[None]:
        """Reserve the most that a call may cost, while it is in flight.

        Raises:
            UserError: The model has no price.
            CallFailedError: The maximum would be exceeded.
        """
        if self._max_cost is None:
            yield
            return
        size = len(json.dumps(body["messages"], ensure_ascii=False).encode("utf-8", "replace"))
        limit = body.get("max_tokens") or body.get("max_completion_tokens") or 0
        most = self._prices.of(body["model"], size // BYTES_PER_TOKEN + 1, limit)
        if most is None:
            raise UserError(f"--max-cost: --prices has no price of {body['model']}")
        if self._dollars + self._reserved + most > self._max_cost:
            raise CallFailedError(
                f"not made, since --max-cost {self._max_cost:g} might be exceeded "
                f"(${self._dollars:.4f} spent)"
            )
        self._reserved += most
        try:
            yield
        finally:
            self._reserved -= most


class Asker:
    """Sends the calls that have no record to one endpoint, and writes their records.

    Args:
        client: The endpoint.
        records: Where the records are.
        progress: Counts the calls.
        budget: Prices, and what was spent.
        again: Returns whether a recorded call is made again.
        max_concurrency: Maximum calls in flight.
    """

    def __init__(
        self,
        client: Client,
        records: Records,
        progress: Progress,
        budget: Budget,
        *,
        again: Callable[[Mapping[str, Any]], bool] = lambda _record: False,
        max_concurrency: int,
    ) -> None:
        self._client, self._records, self._progress = client, records, progress
        self._budget, self._again = budget, again
        self._places = asyncio.Semaphore(max_concurrency)
        self._refused: dict[str, dict[str, Any]] = {}
        self._succeeded = False

    async def ask(self, call: Call) -> str:
        """Return the text of the call's record, making the call first if there is none.

        Raises:
            UserError, CallFailedError: See `Client.chat`.
            RefusedError: The call is or was refused because of its content.
        """
        record = self._records.get(call.key)
        if record is None or self._again(record):
            async with self._places:
                with self._budget.reserved(call.body):
                    reply = await self._reply(call)
                self._budget.add(call.body["model"], reply.prompt_tokens, reply.completion_tokens)
            record = {**call.about, **_record(reply)}
            self._records.forget(call.key)
            self._records.add(call.key, record)
        self._progress.add(1, str(self._budget.spent))
        if FAILED in record:
            raise RefusedError(record[FAILED])
        self._succeeded = True
        return str(record["text"])

    async def _reply(self, call: Call) -> Reply:
        try:
            return await self._client.chat(call.body)
        except RefusedError as error:
            record = {**call.about, "text": "", FAILED: str(error), "time": _now()}
            self._refused[call.key] = record
            raise

    def record_refused(self) -> str:
        """Record the refused calls, unless all calls were refused; then return the reason."""
        refused = list(self._refused.values())
        if refused and not self._succeeded:
            return f"all {len(refused)} calls were refused, first: {refused[0][FAILED]}"
        for key, record in self._refused.items():
            self._records.forget(key)
            self._records.add(key, record)
        return ""


async def for_all(items: Iterable[Item], work: Callable[[Item], Awaitable[Any]]) -> list[str]:
    """Run `work` on all items concurrently; return the messages of the calls that failed.

    Calls that are refused because of their content are not among them.

    Raises:
        UserError, OSError: An item raised it (a full disk, for example); the others are cancelled.
    """
    failures: list[str] = []

    async def one(item: Item) -> None:
        try:
            await work(item)
        except RefusedError:
            pass  # the asker records it
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
    messages, texts = question.earlier_messages(), []
    for number, turn in enumerate(question.turns):
        messages.append({"role": "user", "content": turn})
        texts.append(await asker.ask(answer_call(question, number, messages, fields, version)))
        messages.append({"role": "assistant", "content": texts[-1]})
    return tuple(texts)


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
        "question_id": question.id,
        "category": question.category,
        "turn": number,
        "model": fields["model"],
    }
    known = (version,) if version else ()
    return Call(key=key_of("answer", question.id, number, body, *known), body=body, about=about)


def _record(reply: Reply) -> dict[str, Any]:
    record: dict[str, Any] = {
        "text": reply.text,
        "finish_reason": reply.finish_reason,
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.completion_tokens,
        "time": _now(),
    }
    more = {
        "logprobs": reply.logprobs,
        "reasoning": reply.reasoning,
        "changed": reply.changed,
        "attempts": reply.attempts if reply.attempts > 1 else 0,
    }
    return record | {name: value for name, value in more.items() if value}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
