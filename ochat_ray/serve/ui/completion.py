"""Send one question to the endpoint in this process, and stream the growing answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass

import httpx
import orjson

URL = "http://localhost/v1/chat/completions"


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Text so far; `problem` is one line if the answer did not end normally."""

    text: str
    problem: str | None = None


async def complete(
    transport: httpx.AsyncBaseTransport, body: Mapping[str, object], headers: Mapping[str, str]
) -> AsyncGenerator[Progress, None]:
    """Send the request with streaming. Closing the generator cancels the request."""
    text = ""
    try:
        async with (
            httpx.AsyncClient(transport=transport, timeout=None, trust_env=False) as client,  # noqa: S113 - an answer may take its time
            client.stream("POST", URL, json={**body, "stream": True}, headers=headers) as response,
        ):
            if response.status_code != 200:
                yield Progress(text="", problem=_message(await response.aread()))
                return
            async with aclosing(_events(response)) as events:
                async for event in events:
                    if event == "[DONE]":
                        return
                    data = orjson.loads(event)
                    if "error" in data:
                        yield Progress(text=text, problem=data["error"]["message"])
                        return
                    for choice in data["choices"]:
                        text += choice["delta"].get("content") or ""
                        cut = choice["finish_reason"] == "length"
                        problem = "The answer reached its limit of tokens." if cut else None
                        yield Progress(text=text, problem=problem)
        yield Progress(text=text, problem="the answer was interrupted")
    except httpx.HTTPError:
        yield Progress(text=text, problem="the server failed to answer")


async def newest(
    source: AsyncGenerator[Progress, None], *, every_s: float, readers: set[asyncio.Task[None]]
) -> AsyncGenerator[Progress, None]:
    """Yield the latest item of a source, at most once per `every_s`, and always the last one.

    The task that reads the source is in `readers` meanwhile; cancelling it ends the answer.
    """
    waiting: list[Progress] = []
    news = asyncio.Event()

    async def read() -> None:
        async with aclosing(source):
            async for progress in source:
                waiting[:] = [progress]
                news.set()

    task = asyncio.create_task(read())
    task.add_done_callback(lambda _: news.set())
    readers.add(task)
    try:
        while not (task.done() and not waiting):
            await news.wait()
            news.clear()
            if waiting:
                yield waiting.pop()
            await asyncio.wait({task}, timeout=every_s)
        if not task.cancelled():
            task.result()
    finally:
        readers.discard(task)
        task.cancel()
        await asyncio.wait({task})


async def _events(response: httpx.Response) -> AsyncGenerator[str, None]:
    """Yield the data of server-sent events, each on one line as our server writes them."""
    async for line in response.aiter_lines():
        if line.startswith("data: "):
            yield line.removeprefix("data: ")


def _message(body: bytes) -> str:
    try:
        return str(orjson.loads(body)["error"]["message"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return "the server failed to answer"
