"""Measure how many calls one evaluation process makes at once.

    python benchmarks/evaluate_calls.py --concurrency 64 256 512 --latency-s 2

Starts an endpoint in another process that answers each call after a fixed latency with 2,000
characters, as a model or judge with enough replicas would, and asks it for answers. Prints the most
calls in flight at the endpoint, and the rate once they are, in two latencies, beside the highest
that the latency allows: the concurrency divided by it. The run lasts until the number of calls in
flight has grown, and for four latencies more.
"""

from __future__ import annotations

import argparse
import asyncio
import bisect
import json
import multiprocessing
import resource
import socket
import tempfile
import time
from pathlib import Path

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from ochat_ray.evaluate.config import EvaluateConfig
from ochat_ray.evaluate.steps import run


def serve(port: int, latency_s: float) -> None:
    """Serve an endpoint that answers after the latency."""

    ended: list[float] = []
    flying = [0, 0]

    async def stats(_request: Request) -> JSONResponse:
        window = 2 * latency_s
        rates = [(bisect.bisect(ended, t + window) - n) / window for n, t in enumerate(ended)]
        found = {"most": flying[1], "rate": max(rates)}
        ended.clear()
        flying[1] = 0
        return JSONResponse(found)

    async def chat(request: Request) -> JSONResponse:
        await request.json()
        flying[0] += 1
        flying[1] = max(flying)
        await asyncio.sleep(latency_s)
        flying[0] -= 1
        ended.append(time.monotonic())
        message = {"role": "assistant", "content": "word " * 400}
        return JSONResponse(
            {
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 10, "completion_tokens": 400},
            }
        )

    routes = [Route("/v1/chat/completions", chat, methods=["POST"]), Route("/stats", stats)]
    app = Starlette(routes=routes)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="critical")


def measure(url: str, folder: Path, concurrency: int, calls: int) -> float:
    """Make the calls; return their CPU seconds."""
    questions = folder / f"{concurrency}.jsonl"
    rows = ({"question_id": n, "text": f"question {n}"} for n in range(calls))
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = EvaluateConfig(
        step="answer", suite="mt_bench", questions=str(questions), model=("m",), url=url,
        output=str(folder / str(concurrency)), max_concurrency=concurrency,
    )  # fmt: skip
    used = resource.getrusage(resource.RUSAGE_SELF)
    run(config)
    now = resource.getrusage(resource.RUSAGE_SELF)
    return now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime


def main() -> None:
    """Parse the options, measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[64, 256, 512])
    parser.add_argument("--latency-s", type=float, default=2.0)
    options = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = multiprocessing.get_context("spawn").Process(
        target=serve, args=(port, options.latency_s), daemon=True
    )
    server.start()
    for _ in range(300):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    print(
        f"{'at once':>8}{'calls':>8}{'most':>7}{'calls/s':>9}{'highest':>9}{'CPU ms per call':>17}"
    )
    with tempfile.TemporaryDirectory() as folder:
        for concurrency in options.concurrency:
            calls = concurrency * (2 + 4)  # growth takes two of its size
            cpu = measure(f"http://127.0.0.1:{port}/v1", Path(folder), concurrency, calls)
            found = httpx.get(f"http://127.0.0.1:{port}/stats").json()
            print(
                f"{concurrency:>8}{calls:>8}{found['most']:>7}{found['rate']:>9.1f}"
                f"{concurrency / options.latency_s:>9.1f}{1000 * cpu / calls:>17.1f}"
            )
    server.terminate()


if __name__ == "__main__":
    main()
