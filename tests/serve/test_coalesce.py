from __future__ import annotations

import asyncio

import pytest

from ochat_ray.serve.coalesce import coalesce, pause_s
from ochat_ray.serve.engines.base import Delta, EngineError, TokenLogprobs


async def said(count, log, *, pause_s=0.0, error=None):
    try:
        for number in range(count):
            await asyncio.sleep(pause_s)
            last = number == count - 1 and error is None
            yield Delta(
                token_ids=(number,),
                finish_reason="length" if last else None,
                logprobs=(TokenLogprobs(token_id=number, logprob=-1.0),),
            )
        if error:
            raise error
    finally:
        log.append("closed")


async def collect(stream, read=None, slow_s=0.0):
    found = []
    try:
        async for delta in stream:
            found.append(delta)
            await asyncio.sleep(slow_s)
            if len(found) == read:
                break
    finally:
        await stream.aclose()
    return found


@pytest.mark.parametrize("pause", [0.0, 0.02])
@pytest.mark.parametrize("slow", [0.0, 0.01])
def test_no_token_is_lost_and_the_order_stays(pause, slow):
    log = []
    stream = coalesce(said(20, log, pause_s=0.002), lambda: pause)
    found = asyncio.run(collect(stream, slow_s=slow))
    assert [i for delta in found for i in delta.token_ids] == list(range(20))
    assert [e.token_id for delta in found for e in delta.logprobs] == list(range(20))
    assert [delta.finish_reason for delta in found] == [None] * (len(found) - 1) + ["length"]
    assert found[0].token_ids == (0,)
    assert log == ["closed"]


def test_with_a_pause_there_are_fewer_deltas():
    found = asyncio.run(collect(coalesce(said(50, [], pause_s=0.001), lambda: 60.0)))
    # The first at once, and all others together once the end is known: nobody waits a minute.
    assert [len(delta.token_ids) for delta in found] == [1, 49]


def test_an_error_comes_after_what_was_said():
    found = []

    async def run():
        async for delta in coalesce(said(3, [], error=EngineError("broke")), lambda: 0.01):
            found.append(delta)

    with pytest.raises(EngineError, match="broke"):
        asyncio.run(run())
    assert [i for delta in found for i in delta.token_ids] == [0, 1, 2]


def test_a_reader_that_leaves_closes_the_source():
    log = []
    asyncio.run(collect(coalesce(said(9, log, pause_s=0.01), lambda: 0.05), read=1))
    assert log == ["closed"]


def test_a_lone_stream_hardly_waits_and_many_are_bounded():
    assert pause_s(1) == 1 / 80
    assert pause_s(8) == 0.1
    assert pause_s(1000) == 0.2
