"""Measure what hostile requests cost another user: a bystander's waits beside each of them.

    python benchmarks/serve_bystander.py --model runs/demo/model --seconds 60

Starts its own Ray and one replica. A bystander asks for 8 tokens every 2 seconds, first alone and
then beside each kind of hostile request, which one client sends in a loop. No request of the
bystander may fail, and its median wait may be at most twice the one it has beside a valid request
that is sent in the same loop, which needs the processor as well. Prints a table; exit status 1
where that does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator

import aiohttp
from serve_hostile import HOSTILE, chat
from serve_soak import KEY, deploy, shut_down

EVERY_S = 2.0
MOST = 2.0
"""Allowed ratio of the bystander's median wait to that beside a valid request."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="runs/demo/model")
    parser.add_argument("--seconds", type=float, default=60, help="of each kind")
    parser.add_argument("--only", help="part of the kind's name")
    arguments = parser.parse_args()
    url = deploy(arguments.model, replicas=1)
    try:
        kinds = {k: v for k, v in HOSTILE.items() if not arguments.only or arguments.only in k}
        sys.exit(asyncio.run(measure(url, kinds, arguments.seconds)))
    finally:
        shut_down()


async def measure(url: str, kinds: dict[str, bytes], seconds: float) -> int:
    """Print a row for each kind; return the exit status."""
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    async with aiohttp.ClientSession(url, headers=headers) as session:
        await asks(session, 6)
        alone = await asks(session, min(seconds, 30))
        print(f"alone: median {statistics.median(alone.waits):.2f} s\n")
        print("| sent in a loop | sent | answers | bystander: failed | median s | max s | ratio |")
        print("|---|---|---|---|---|---|---|")
        failed, beside_valid = 0, {"a valid request": chat()}
        usual = None
        for name, body in (beside_valid | kinds).items():
            statuses: Counter[int | str] = Counter()
            sending = asyncio.create_task(send(session, body, statuses))
            bystander = await asks(session, seconds)
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            await asyncio.sleep(5)
            median = statistics.median(bystander.waits or [float("inf")])
            usual = usual or median
            bad = bystander.failures > 0 or median > MOST * usual
            failed += bad
            print(
                f"| {name} | {statuses.total()} | {shown(statuses)} | {bystander.failures} | "
                f"{median:.2f} | {max(bystander.waits or [0]):.2f} | {median / usual:.2f}"
                f"{' **too slow**' if bad else ''} |",
                flush=True,
            )
    return 1 if failed else 0


class Bystander:
    """Waits in seconds of answered requests, and the number of others."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        self.failures = 0


async def asks(session: aiohttp.ClientSession, seconds: float) -> Bystander:
    """Ask for 8 tokens every `EVERY_S`, for this long."""
    found = Bystander()
    async for _ in ticks(seconds):
        started = time.monotonic()
        try:
            async with session.post("/v1/chat/completions", data=chat()) as response:
                answer = await response.json()
            good = response.status == 200 and answer["usage"]["completion_tokens"] >= 1
        except (aiohttp.ClientError, TimeoutError):
            good = False
        found.waits += [time.monotonic() - started] if good else []
        found.failures += not good
    return found


async def ticks(seconds: float) -> AsyncIterator[None]:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        next_one = time.monotonic() + EVERY_S
        yield
        await asyncio.sleep(max(0.0, next_one - time.monotonic()))


async def send(session: aiohttp.ClientSession, body: bytes, statuses: Counter[int | str]) -> None:
    """Send the body in a loop, until cancelled."""
    while True:
        try:
            async with session.post("/v1/chat/completions", data=body) as response:
                await response.read()
                statuses[response.status] += 1
        except aiohttp.ClientError as error:
            statuses[type(error).__name__] += 1


def shown(statuses: Counter[int | str]) -> str:
    return ", ".join(f"{count} x {status}" for status, count in statuses.most_common())


if __name__ == "__main__":
    main()
