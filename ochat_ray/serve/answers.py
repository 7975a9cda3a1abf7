"""Convert an engine's deltas to text pieces: complete characters, cut before stop strings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from ochat_ray.serve.detokenize import Detokenizer, StopStrings, Vocabulary
from ochat_ray.serve.engines.base import (
    Delta,
    EngineError,
    FinishReason,
    PromptLogprobs,
    TokenLogprobs,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """Piece of an answer's text; the last piece has a finish reason.

    `tokens` counts from the start of the answer. `logprobs` holds the requested entries of the
    tokens in the text, each with the offset, in characters, at which its text begins; stop tokens
    are left out, unless the text includes them or the prompt. The first piece has the prompt's
    log-probabilities, if requested, with the offsets of its tokens if it is part of the text, and
    the number of its tokens in the engine's cache, if known.
    """

    text: str
    tokens: int
    finish_reason: FinishReason | None = None
    logprobs: tuple[tuple[int, TokenLogprobs], ...] = ()
    prompt_logprobs: PromptLogprobs | None = None
    prompt_offsets: Sequence[int] = ()
    cached_tokens: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Echo:
    """Prompt that is part of the text: its ids, and the offset of each if entries are reported."""

    ids: Sequence[int]
    offsets: Sequence[int] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class TextRules:
    """Rules by which the tokens of an answer become its text.

    Attributes:
        stops: Stop strings, which end the answer.
        stop_ids: Token ids that end the answer.
        min_tokens: Tokens before which no stop string ends the answer.
        include_stop: Whether the text includes the stop string or stop token.
        special_tokens: Whether the names of special tokens are text.
        continues: Whether the answer continues a text, such as the prompt's last message.
        echo: Whether the text begins with the prompt's.
        score_only: Whether the answer has no tokens: only the prompt is scored.
    """

    stops: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    min_tokens: int = 0
    include_stop: bool = False
    special_tokens: bool = False
    continues: bool = False
    echo: bool = False
    score_only: bool = False


async def pieces(
    deltas: AsyncIterator[Delta],
    vocabulary: Vocabulary,
    rules: TextRules,
    echo: Echo | None = None,
) -> AsyncGenerator[Piece, None]:
    """Yield the text of a stream of deltas, cut at the first stop string.

    Args:
        deltas: The engine's output.
        vocabulary: Bytes of the token ids.
        rules: Rules by which the tokens become text.
        echo: Prompt with which the text begins.

    Raises:
        EngineError: The engine failed, or its stream ended without a finish reason.
    """
    reader = _Reader(vocabulary, rules, echo)
    first: Delta | None = None
    begun = False
    async for delta in deltas:
        first = first or delta
        piece = reader.read(delta)
        if not begun:
            piece = reader.begin(first, piece)
        if piece.text or piece.logprobs or piece.finish_reason is not None:
            yield piece
            begun = True
        if piece.finish_reason is not None:
            return
    raise EngineError("the engine ended without a finish reason")


class _Reader:
    """State of one answer's text."""

    def __init__(self, vocabulary: Vocabulary, rules: TextRules, echo: Echo | None) -> None:
        self._rules = rules
        self._echo = echo
        self._detokenizer = Detokenizer(
            vocabulary, special_tokens=rules.special_tokens, continues=rules.continues
        )
        self._watcher = StopStrings(rules.stops, keep=rules.include_stop)
        self._prompt = self._detokenizer.push(echo.ids) if echo else ""
        self._tokens = 0
        self._read = self._shown = len(self._prompt)
        self._waiting: list[tuple[int, TokenLogprobs]] = []

    def begin(self, delta: Delta, piece: Piece) -> Piece:
        """Return the first piece with what the first delta and the prompt add."""
        return replace(
            piece,
            text=self._prompt + piece.text,
            prompt_logprobs=delta.prompt_logprobs,
            prompt_offsets=self._echo.offsets if self._echo else (),
            cached_tokens=delta.cached_tokens,
        )

    def read(self, delta: Delta) -> Piece:
        """Return the piece of the next delta, possibly without text."""
        if self._rules.score_only:
            return Piece(text="", tokens=0, finish_reason="length")
        text, stopped = self._text(delta)
        reason = "stop" if stopped else delta.finish_reason
        if reason is not None and not stopped:
            text += self._watcher.flush()
        self._shown += len(text)
        # Later text is still held back or, after a stop string, never returned.
        ready = [entry for entry in self._waiting if entry[0] < self._shown]
        if reason is not None and not stopped:
            ready = self._waiting
        self._waiting = self._waiting[len(ready) :]
        return Piece(text=text, tokens=self._tokens, finish_reason=reason, logprobs=tuple(ready))

    def _text(self, delta: Delta) -> tuple[str, bool]:
        """Return the text that can be shown after this delta, and whether a stop string ends it."""
        rules, ids = self._rules, delta.token_ids
        hidden = 0  # a stop token that is not part of the text
        if ids and ids[-1] in rules.stop_ids and delta.finish_reason is not None:
            hidden = 0 if rules.include_stop else 1
        shown = len(ids) - hidden
        if not (delta.logprobs or rules.stops):
            self._tokens += len(ids)
            return self._detokenizer.push(ids[:shown]), False
        text = ""
        # One by one: the answer ends with the token that stops it.
        for position, token_id in enumerate(ids):
            if delta.logprobs and (position < shown or rules.echo):
                self._waiting.append((self._read, delta.logprobs[position]))
            new = self._detokenizer.push((token_id,)) if position < shown else ""
            self._read += len(new)
            self._tokens += 1
            if self._tokens <= rules.min_tokens:
                text += new
                continue
            safe, stopped = self._watcher.push(new)
            text += safe
            if stopped:
                return text, True
        return text, False


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Next piece of the choice `index`."""

    index: int
    piece: Piece


async def merge(
    streams: Sequence[AsyncGenerator[Piece, None]],
    *,
    quiet_s: float,
    timeout_s: float,
    at_once: int,
) -> AsyncGenerator[Event | None, None]:
    """Yield the pieces of several answers as they arrive.

    Pieces that accumulate while the reader is busy are joined to one event per choice. None means
    that nothing arrived for `quiet_s`. Closing the generator, or an error in one answer, closes all
    streams.

    Args:
        streams: One stream of pieces per choice.
        quiet_s: Seconds without a piece after which None is yielded.
        timeout_s: Seconds until all answers must be complete.
        at_once: Maximum number of answers generated concurrently, so that one request neither fills
            the queue nor occupies a replica alone.

    Raises:
        TimeoutError: The answers were not complete after `timeout_s`.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    ready: asyncio.Queue[Event | BaseException] = asyncio.Queue()
    turns = asyncio.Semaphore(at_once)
    open_streams = len(streams)

    async def pump(index: int, stream: AsyncGenerator[Piece, None]) -> None:
        try:
            async with turns, aclosing(stream):
                async for piece in stream:
                    ready.put_nowait(Event(index=index, piece=piece))
        except Exception as error:  # noqa: BLE001 - raised again where the pieces are read
            ready.put_nowait(error)

    tasks = [asyncio.create_task(pump(*numbered)) for numbered in enumerate(streams)]
    try:
        while open_streams:
            try:
                async with asyncio.timeout_at(min(deadline, loop.time() + quiet_s)):
                    backlog = [await ready.get()]
            except TimeoutError:
                if loop.time() >= deadline:
                    raise
                yield None
                continue
            while not ready.empty():
                backlog.append(ready.get_nowait())
            for item in _joined(backlog):
                if isinstance(item, BaseException):
                    raise item
                open_streams -= item.piece.finish_reason is not None
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _joined(backlog: list[Event | BaseException]) -> list[Event | BaseException]:
    """Join consecutive pieces of each choice; an error stays after the pieces that preceded it."""
    joined: list[Event | BaseException] = []
    last: dict[int, int] = {}
    for item in backlog:
        if isinstance(item, Event) and item.index in last:
            before = joined[last[item.index]]
            assert isinstance(before, Event)
            joined[last[item.index]] = Event(
                index=item.index,
                piece=Piece(
                    text=before.piece.text + item.piece.text,
                    tokens=item.piece.tokens,
                    finish_reason=item.piece.finish_reason,
                    logprobs=before.piece.logprobs + item.piece.logprobs,
                    prompt_logprobs=before.piece.prompt_logprobs,
                    prompt_offsets=before.piece.prompt_offsets,
                    cached_tokens=before.piece.cached_tokens,
                ),
            )
            continue
        if isinstance(item, Event):
            last[item.index] = len(joined)
        joined.append(item)
    return joined
