"""Load generator: concurrent clients that each send one request after the other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

QUESTIONS = [
    "How does a suspension bridge carry its load to the ground?",
    "Write a short story about a lighthouse keeper who finds a letter.",
    "What is the difference between a list and a tuple in Python, and when would you use each?",
    "Explain photosynthesis to a child of ten.",
    "Give me a recipe for lentil soup with what most kitchens have.",
    "Why did the Roman Republic fall? Name three causes and weigh them.",
    "Compose an email to a landlord about a broken heater.",
    "What should I look at when I buy a used bicycle?",
]


class Request(NamedTuple):
    """Seconds from the request to the first and to the last token, and number of tokens."""

    first: float
    last: float
    tokens: int


class Measured(NamedTuple):
    """Measurements of one contender at one number of streams."""

    tokens_a_second: float
    requests: list[Request]


Ask = Callable[[str, int], AsyncIterator[int]]  # question, limit -> token counts as they arrive


async def load(ask: Ask, streams: int, questions: int, limit: int) -> Measured:
    """Run one client per stream; each sends its questions one after the other."""

    async def client(number: int) -> list[Request]:
        found = []
        for index in range(questions):
            begin = time.perf_counter()
            first, tokens = 0.0, 0
            question = f"{QUESTIONS[(number + index) % len(QUESTIONS)]} ({number}, {index})"
            async for new in ask(question, limit):
                first = first or time.perf_counter() - begin
                tokens += new
            assert tokens == limit, f"{tokens} tokens instead of {limit}"
            found.append(Request(first, time.perf_counter() - begin, tokens))
        return found

    begin = time.perf_counter()
    clients = await asyncio.gather(*[client(number) for number in range(streams)])
    seconds = time.perf_counter() - begin
    requests = [request for found in clients for request in found]
    return Measured(sum(request.tokens for request in requests) / seconds, requests)
