"""Fewer and larger deltas on their way from a replica to the ingress.

A delta costs about as much on its way through Ray as a small model's token on a CPU. So a replica
sends so many a second at most, over all of its streams: one alone gets every token as it comes,
many wait a moment and get several at once, which nobody sees.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from ochat_ray.serve.engines.base import Delta

DELTAS_A_SECOND = 80
LONGEST_PAUSE_S = 0.2


def pause_s(streams: int) -> float:
    """How long a stream waits between its deltas when there are so many."""
    return min(LONGEST_PAUSE_S, streams / DELTAS_A_SECOND)


async def coalesce(
    deltas: AsyncGenerator[Delta, None], pause_s: Callable[[], float]
) -> AsyncGenerator[Delta, None]:
    """The same tokens in fewer deltas, with a pause between two; the first and last come at once.

    Closing it closes `deltas`, whose errors are raised here after what came before them.
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
    )
