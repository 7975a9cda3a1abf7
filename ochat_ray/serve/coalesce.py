"""Coalesce deltas between a replica and the ingress into fewer, larger ones.

Sending a delta through Ray costs about as much as generating a token with a small model on a CPU.
So a replica limits its deltas per second over all streams: a single stream passes every token
immediately; with many streams each waits briefly and sends several tokens together.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from ochat_ray.serve.engines.base import Delta

DELTAS_A_SECOND = 80
LONGEST_PAUSE_S = 0.2


def pause_s(streams: int) -> float:
    """Return the pause between two deltas of a stream, in seconds, for this number of streams."""
    return min(LONGEST_PAUSE_S, streams / DELTAS_A_SECOND)


async def coalesce(
    deltas: AsyncGenerator[Delta, None], pause_s: Callable[[], float]
) -> AsyncGenerator[Delta, None]:
    """Yield the same tokens in fewer deltas; the first and last are passed immediately.

    Closing the generator closes `deltas`. Errors of `deltas` are raised after the tokens before
    them.
    """
    waiting: list[Delta] = []
    arrived, ended = asyncio.Event(), asyncio.Event()

    async def pump() -> None:
        try:
            async with aclosing(deltas):
                async for delta in deltas:
                    waiting.append(delta)
                    arrived.set()
        finally:
            ended.set()
            arrived.set()

    pumping = asyncio.create_task(pump())
    try:
        while True:
            await arrived.wait()
            arrived.clear()
            if waiting:
                joined = _joined(waiting)
                waiting.clear()
                yield joined
            elif ended.is_set():
                break
            try:
                async with asyncio.timeout(pause_s()):
                    await ended.wait()
                arrived.set()
            except TimeoutError:
                pass
        await pumping
    finally:
        pumping.cancel()
        await asyncio.gather(pumping, return_exceptions=True)


def _joined(deltas: list[Delta]) -> Delta:
    if len(deltas) == 1:
        return deltas[0]
    return Delta(
        token_ids=tuple(token_id for delta in deltas for token_id in delta.token_ids),
        finish_reason=deltas[-1].finish_reason,
        logprobs=tuple(entry for delta in deltas for entry in delta.logprobs),
        prompt_logprobs=deltas[0].prompt_logprobs,
        cached_tokens=deltas[0].cached_tokens,
        embedding=deltas[0].embedding,
    )
