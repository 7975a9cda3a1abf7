"""Convert an engine's deltas to text pieces: complete characters, cut before stop strings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from ochat_ray.serve.detokenize import Detokenizer, StopStrings, Vocabulary
from ochat_ray.serve.engines.base import Delta, EngineError, FinishReason, TokenLogprobs


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """Piece of an answer's text; the last piece has a finish reason.

    `tokens` counts from the start of the answer. `logprobs` holds the requested entries of the
    tokens in the text, each with the offset, in characters, at which its text begins; stop tokens
    are left out.
    """

    text: str
    tokens: int
    finish_reason: FinishReason | None = None
    logprobs: tuple[tuple[int, TokenLogprobs], ...] = ()


async def pieces(
    deltas: AsyncIterator[Delta],
    vocabulary: Vocabulary,
    stops: Sequence[str],
    stop_ids: Sequence[int] = (),
) -> AsyncGenerator[Piece, None]:
    """Yield the text of a stream of deltas, cut before the first stop string.

    Args:
        deltas: The engine's output.
        vocabulary: Bytes of the token ids.
        stops: Stop strings.
        stop_ids: Token ids that end the answer and are not part of its text.

    Raises:
        EngineError: The engine failed, or its stream ended without a finish reason.
    """
    detokenizer, watcher = Detokenizer(vocabulary), StopStrings(stops)
    tokens = read = shown = 0
    waiting: list[tuple[int, TokenLogprobs]] = []
    async for delta in deltas:
        text, stopped = "", False
        if delta.logprobs or stops:  # one by one: the answer ends with the token that stops it
            for position, token_id in enumerate(delta.token_ids):
                if delta.logprobs and token_id not in stop_ids:
                    waiting.append((read, delta.logprobs[position]))
                new = detokenizer.push((token_id,))
                read += len(new)
                tokens += 1
                safe, stopped = watcher.push(new)
                text += safe
                if stopped:
                    break
        else:
            tokens += len(delta.token_ids)
            text, stopped = watcher.push(detokenizer.push(delta.token_ids))
        reason = "stop" if stopped else delta.finish_reason
        if reason is not None and not stopped:
            text += watcher.flush()
        shown += len(text)
        # Later text is still held back or, after a stop string, never returned.
        ready = [entry for entry in waiting if entry[0] < shown]
        if reason is not None and not stopped:
            ready = waiting
        if text or ready or reason is not None:
            yield Piece(text=text, tokens=tokens, finish_reason=reason, logprobs=tuple(ready))
        if reason is not None:
            return
        waiting = waiting[len(ready) :]
    raise EngineError("the engine ended without a finish reason")


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
            the
            queue nor occupies a replica alone.

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
                ),
            )
            continue
        if isinstance(item, Event):
            last[item.index] = len(joined)
        joined.append(item)
    return joined
