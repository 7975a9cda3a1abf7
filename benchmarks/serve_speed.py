"""Overhead of serving: tokens per second and time to first token, compared with the bare engine.

    python benchmarks/serve_speed.py --model runs/demo/model
    python benchmarks/serve_speed.py --model runs/demo/model --engine vllm     (needs vLLM)
    python benchmarks/serve_speed.py --model runs/demo/model --ceiling

Contenders, each in separate processes:

- bare: the engine in a process, called through the engine interface;
- endpoint: the same engine with the same threads behind `serve run`'s application, with streaming
  HTTP requests; +throughput and +haproxy use those modes of Ray Serve;
- ray.serve.llm, and its modes: Ray's own application over vLLM (needs vLLM);
- 2023: one request after the other, `model.generate` behind a lock, streamed over HTTP.

Machines are noisy, so each contender is compared with the bare engine: both run, and get requests
in turns, in alternating order. Ratios are between adjacent rounds. "bare" as a contender is a
second bare engine, which shows how much of a difference is noise.

All answer the same prompts greedily with the same number of tokens; a logit bias suppresses the end
of the turn. There is one client per stream, which sends one request after the other. Tokens per
second are all tokens divided by the time from the first request to the last answer. --ceiling uses
the scripted engine, which costs nothing: the rest is Ray Serve, the ingress and the client.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from serve_load import Measured, Request, load

THROUGHPUT, HAPROXY = {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}, {"RAY_SERVE_ENABLE_HA_PROXY": "1"}
MODES = {
    "bare": {}, "endpoint": {}, "endpoint+throughput": THROUGHPUT, "endpoint+haproxy": HAPROXY,
    "2023": {}, "ray.serve.llm": {}, "ray.serve.llm+throughput": THROUGHPUT,
    "ray.serve.llm+haproxy": HAPROXY,
}  # fmt: skip
CONTENDERS = [name for name in MODES if not name.startswith("ray.")]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="runs/demo/model")
    parser.add_argument(
        "--engine", default="transformers", choices=["transformers", "vllm", "scripted"]
    )
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 16, 32])
    parser.add_argument("--tokens", type=int, default=96, help="of an answer")
    parser.add_argument("--questions", type=int, default=1, help="that each client asks")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--cpus", type=int, default=1, help="threads of the engine")
    parser.add_argument("--gpus", type=float, default=0, help="of the engine; two run at a time")
    parser.add_argument("--kv-cache-gib", type=float, default=1)
    parser.add_argument("--contenders", nargs="+", choices=[*MODES], default=CONTENDERS)
    parser.add_argument("--ceiling", action="store_true")
    parser.add_argument("--json", action="store_true", help="the result as JSON on the last line")
    arguments = parser.parse_args()
    if arguments.ceiling:
        asyncio.run(ceiling(arguments))
    else:
        asyncio.run(compare(arguments))


async def compare(arguments: argparse.Namespace) -> None:
    """Measure every contender in turns with the bare engine, and print medians."""
    bare, rows = Contender("bare", arguments), []
    try:
        bare.start()
        await bare.measure(2, 1, 16)
        for name in arguments.contenders:
            other = Contender(name, arguments)
            try:
                other.start()
                await other.measure(2, 1, 16)
                for streams in arguments.streams:
                    pairs = await measure_pairs(bare, other, streams, arguments)
                    rows.append(summary(name, streams, pairs))
                    print(row_of(rows[-1]), file=sys.stderr)
            finally:
                other.stop()
    finally:
        bare.stop()
    print(HEAD, *map(row_of, sorted(rows, key=lambda row: row["streams"])), sep="\n")
    if arguments.json:
        print(json.dumps(rows))


async def measure_pairs(
    bare: Contender, other: Contender, streams: int, arguments: argparse.Namespace
) -> list[tuple[Measured, Measured]]:
    """Measure the bare engine and the other at this many streams, round by round."""
    pairs = []
    for number in range(arguments.rounds):
        found = {}
        for contender in (bare, other) if number % 2 else (other, bare):
            # One at a time takes proportionally long with more streams; a few tokens suffice.
            few = contender.name == "2023" and streams > 4
            limit = arguments.tokens // 4 if few else arguments.tokens
            found[contender] = await contender.measure(streams, arguments.questions, limit)
        pairs.append((found[bare], found[other]))
    return pairs


def summary(name: str, streams: int, pairs: list[tuple[Measured, Measured]]) -> dict[str, Any]:
    """Return medians over the rounds, also of ratios; percentiles over all requests, in ms."""
    ratios = [other.tokens_a_second / bare.tokens_a_second for bare, other in pairs]
    row: dict[str, Any] = {
        "contender": name,
        "streams": streams,
        "ratio": statistics.median(ratios),
        "least": min(ratios),
        "most": max(ratios),
    }
    for whose, results in zip(("bare", "own"), zip(*pairs, strict=True), strict=True):
        requests = [request for result in results for request in result.requests]
        first = sorted(1e3 * request.first for request in requests)
        each = sorted(1e3 * (r.last - r.first) / (r.tokens - 1) for r in requests if r.tokens > 1)
        row |= {
            f"{whose}_tokens_a_second": statistics.median(r.tokens_a_second for r in results),
            f"{whose}_ttft_ms": [percentile(first, share) for share in (0.5, 0.99)],
            f"{whose}_tpot_ms": [percentile(each, share) for share in (0.5, 0.99)],
        }
    return row


def percentile(ordered: list[float], share: float) -> float:
    """Return the value that this share of all values does not exceed."""
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


HEAD = (
    "| streams | contender | tokens/s: bare, own | own / bare (least to most) "
    "| TTFT p50, p99 ms: bare; own | TPOT p50, p99 ms: bare; own |\n"
    "| --- | --- | --- | --- | --- | --- |"
)


def row_of(row: dict[str, Any]) -> str:
    """Return a line of the table."""

    def times(name: str, digits: int) -> str:
        both = (row[f"bare_{name}_ms"], row[f"own_{name}_ms"])
        return "; ".join(", ".join(f"{ms:.{digits}f}" for ms in found) for found in both)

    return (
        f"| {row['streams']} | {row['contender']} "
        f"| {row['bare_tokens_a_second']:.1f}, {row['own_tokens_a_second']:.1f} "
        f"| {row['ratio']:.1%} ({row['least']:.1%} to {row['most']:.1%}) "
        f"| {times('ttft', 0)} | {times('tpot', 1)} |"
    )


async def ceiling(arguments: argparse.Namespace) -> None:
    """Measure requests and chunks per second with an engine that costs nothing."""
    arguments.engine = "scripted"
    names = [name for name in arguments.contenders if name.startswith("endpoint")]
    for name in names:
        contender = Contender(name, arguments)
        try:
            contender.start()
            await contender.measure(4, 2, 16)
            before = contender.cpu_s()
            chunks = await contender.measure(16, 4, 200)
            between = contender.cpu_s()
            whole = await contender.measure(16, 40, 1)
            after = contender.cpu_s()
        finally:
            contender.stop()
        requests = whole.tokens_a_second  # one token each
        first = sorted(request.first for request in whole.requests)
        print(
            f"{name}: {chunks.tokens_a_second:.0f} tokens/s in 16 streams of 200 tokens; "
            f"{requests:.0f} requests/s of one token, "
            f"TTFT p50 {1e3 * percentile(first, 0.5):.1f} ms; CPU of the server's processes: "
            f"{1e3 * (between - before) / 12800:.2f} ms per token in streams, "
            f"{1e3 * (after - between) / 640:.1f} ms per request of one token"
        )


class Contender:
    """Server process, and the way to send it requests."""

    def __init__(self, name: str, arguments: argparse.Namespace) -> None:
        self.name = name
        self.command = [
            sys.executable, str(Path(__file__).with_name("serve_contenders.py")), name,
            "--model", arguments.model, "--engine", arguments.engine, "--cpus", str(arguments.cpus),
            "--gpus", str(arguments.gpus), "--kv-cache-gib", str(arguments.kv_cache_gib),
        ]  # fmt: skip
        self.process: subprocess.Popen[str] | None = None
        self.address = ""

    def start(self) -> None:
        """Start the process and wait until it answers."""
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | MODES[self.name],
        )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("ready "):
                self.address = line.split()[1]
                return
        raise SystemExit(f"{self.name} did not start")

    def stop(self) -> None:
        """Stop the process and its descendants."""
        if self.process is not None:
            assert self.process.stdin is not None
            self.process.stdin.close()
            self.process.wait(60)

    def cpu_s(self) -> float:
        """Return the CPU seconds so far of the process and its descendants."""
        assert self.process is not None
        root = psutil.Process(self.process.pid)
        return sum(sum(p.cpu_times()[:2]) for p in [root, *root.children(recursive=True)])

    async def measure(self, streams: int, questions: int, limit: int) -> Measured:
        """Send requests from this many concurrent clients."""
        if self.name == "bare":
            assert self.process is not None
            assert self.process.stdin is not None
            assert self.process.stdout is not None
            print(json.dumps([streams, questions, limit]), file=self.process.stdin, flush=True)
            speed, requests = json.loads(await asyncio.to_thread(self.process.stdout.readline))
            return Measured(speed, [Request(*request) for request in requests])
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:
            return await load(
                lambda q, n: over_http(session, self.address, q, n), streams, questions, limit
            )


async def over_http(
    session: aiohttp.ClientSession, address: str, question: str, limit: int
) -> AsyncIterator[int]:
    """Yield the growth of the usage per event: pieces of an answer may hold several tokens."""
    body = {
        "model": "bench",
        "messages": [{"role": "user", "content": question}],
        "stream": True,
        "max_tokens": limit,
        "stream_options": {"include_usage": True},
        **rules(address),
    }
    path = f"{address.split('#')[0]}/v1/chat/completions"
    seen = 0
    async with session.post(path, json=body) as response:
        assert response.status == 200, await response.text()
        async for line in response.content:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if event.get("usage"):
                # Pieces may hold several tokens, or tokens without text.
                yield event["usage"]["completion_tokens"] - seen
            elif event["choices"][0]["delta"].get("content"):
                seen += 1
                yield 1


def rules(address: str) -> dict[str, Any]:
    """Return fields for greedy answers without the end-of-turn token, if biases are supported."""
    end_of_turn = address.split("#")[1]
    if end_of_turn == "none":
        return {}
    return {"temperature": 0, "logit_bias": {end_of_turn: -100}}


if __name__ == "__main__":
    main()
