"""What does serving cost: tokens a second and time to first token, beside the bare engine?

    python benchmarks/serve_speed.py --model runs/demo/model
    python benchmarks/serve_speed.py --model runs/demo/model --engine vllm     (where vLLM is)
    python benchmarks/serve_speed.py --model runs/demo/model --ceiling

Contenders, each in processes of its own and alone on the machine, in an order that rotates:

- bare: the engine in a process, asked through the engine protocol;
- endpoint: the same engine with the same threads behind `serve run`'s application, asked over
  HTTP as streams; with +throughput and +haproxy in those modes of Ray Serve;
- 2023: one request after the other, `model.generate` behind a lock, streamed over HTTP.

All answer the same prompts greedily with as many tokens each; a bias keeps the end of the turn
away. As many clients as there are streams each ask one question after the other. Tokens a second
are all tokens over the time from the first question to the last answer. --ceiling asks the
scripted engine, which costs nothing: what is left is Ray Serve, the ingress and the client.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, NamedTuple

import aiohttp
import psutil

CONTENDERS = ["bare", "endpoint", "endpoint+throughput", "endpoint+haproxy", "2023"]
MODES = {
    "endpoint+throughput": {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"},
    "endpoint+haproxy": {"RAY_SERVE_ENABLE_HA_PROXY": "1"},
}
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
    """Seconds from the question to the first and to the last token, and how many came."""

    first: float
    last: float
    tokens: int


class Measured(NamedTuple):
    """One contender at one number of streams."""

    tokens_a_second: float
    requests: list[Request]


Ask = Callable[[str, int], AsyncIterator[int]]  # question, limit -> tokens that came, as they come


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
    parser.add_argument("--questions", type=int, default=2, help="that each client asks")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cpus", type=int, default=1, help="threads of the engine")
    parser.add_argument("--gpus", type=float, default=0, help="of the engine")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    parser.add_argument("--ceiling", action="store_true")
    parser.add_argument("--json", action="store_true", help="the result as JSON on the last line")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender == "bare":
        asyncio.run(serve_bare(arguments))
    elif arguments.contender == "2023":
        serve_one_at_a_time(arguments)
    elif arguments.contender:
        serve_endpoint(arguments)
    elif arguments.ceiling:
        asyncio.run(ceiling(arguments))
    else:
        asyncio.run(compare(arguments))


# ----------------------------------------------------------------------------------- the parent


async def compare(arguments: argparse.Namespace) -> None:
    """Measure in turn, each alone on the machine, and print medians."""
    found: dict[tuple[str, int], list[Measured]] = {}
    names = list(arguments.contenders)
    for number in range(arguments.rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            contender = Contender(name, arguments)
            try:
                contender.start()
                await contender.measure(2, 1, 16)
                for streams in arguments.streams:
                    # One at a time takes as long again for every stream; a few tell it all.
                    questions = 1 if name == "2023" else arguments.questions
                    limit = arguments.tokens // (4 if name == "2023" and streams > 4 else 1)
                    result = await contender.measure(streams, questions, limit)
                    found.setdefault((name, streams), []).append(result)
                    print(f"round {number + 1}: {name}, {streams} streams, "
                          f"{result.tokens_a_second:.1f} tokens/s", file=sys.stderr)  # fmt: skip
            finally:
                contender.stop()
    rows = [summary(name, streams, results) for (name, streams), results in found.items()]
    report(rows, found)
    if arguments.json:
        print(json.dumps(rows))


def summary(name: str, streams: int, results: list[Measured]) -> dict[str, Any]:
    """Medians over the rounds; percentiles over all requests."""
    requests = [request for result in results for request in result.requests]
    speeds = [result.tokens_a_second for result in results]
    first = sorted(request.first for request in requests)
    each = sorted((r.last - r.first) / (r.tokens - 1) for r in requests if r.tokens > 1)
    return {
        "contender": name, "streams": streams, "tokens_a_second": statistics.median(speeds),
        "slowest": min(speeds), "fastest": max(speeds),
        "ttft_p50_ms": 1e3 * percentile(first, 0.5), "ttft_p99_ms": 1e3 * percentile(first, 0.99),
        "tpot_p50_ms": 1e3 * percentile(each, 0.5), "tpot_p99_ms": 1e3 * percentile(each, 0.99),
    }  # fmt: skip


def percentile(ordered: list[float], share: float) -> float:
    """The value that this share of all is not above."""
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


def report(rows: list[dict[str, Any]], found: dict[tuple[str, int], list[Measured]]) -> None:
    """A table, with the median over rounds of each round's ratio to the bare engine."""
    print("| streams | contender | tokens/s (slowest to fastest) | of bare | TTFT p50, p99, ms "
          "| TPOT p50, p99, ms |\n| --- | --- | --- | --- | --- | --- |")  # fmt: skip
    for row in sorted(rows, key=lambda row: (row["streams"], CONTENDERS.index(row["contender"]))):
        bare = found.get(("bare", row["streams"]))
        own = found[row["contender"], row["streams"]]
        ratio = "-"
        if bare:
            pairs = zip(own, bare, strict=True)
            ratios = [a.tokens_a_second / b.tokens_a_second for a, b in pairs]
            ratio = f"{statistics.median(ratios):.1%}"
        print(
            f"| {row['streams']} | {row['contender']} | {row['tokens_a_second']:.1f} "
            f"({row['slowest']:.1f} to {row['fastest']:.1f}) | {ratio} "
            f"| {row['ttft_p50_ms']:.0f}, {row['ttft_p99_ms']:.0f} "
            f"| {row['tpot_p50_ms']:.1f}, {row['tpot_p99_ms']:.1f} |"
        )


async def ceiling(arguments: argparse.Namespace) -> None:
    """Requests and chunks a second with an engine that costs nothing."""
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
            f"{1e3 * (between - before) / 12800:.2f} ms a token in streams, "
            f"{1e3 * (after - between) / 640:.1f} ms a request of one"
        )


class Contender:
    """A process that answers, and how it is asked."""

    def __init__(self, name: str, arguments: argparse.Namespace) -> None:
        self.name = name
        self.command = [
            sys.executable, __file__, "--contender", name, "--model", arguments.model,
            "--engine", arguments.engine, "--cpus", str(arguments.cpus),
            "--gpus", str(arguments.gpus),
        ]  # fmt: skip
        self.process: subprocess.Popen[str] | None = None
        self.address = ""

    def start(self) -> None:
        """Start the process and wait until it answers."""
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | MODES.get(self.name, {}),
        )  # fmt: skip
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("ready "):
                self.address = line.split()[1]
                return
        raise SystemExit(f"{self.name} did not start")

    def stop(self) -> None:
        """End the process and what it started."""
        if self.process is not None:
            assert self.process.stdin is not None
            self.process.stdin.close()
            self.process.wait(60)

    def cpu_s(self) -> float:
        """CPU seconds so far of the process and of what it started."""
        assert self.process is not None
        root = psutil.Process(self.process.pid)
        return sum(sum(p.cpu_times()[:2]) for p in [root, *root.children(recursive=True)])

    async def measure(self, streams: int, questions: int, limit: int) -> Measured:
        """Ask with that many clients at once."""
        if self.name == "bare":
            assert self.process is not None
            assert self.process.stdin is not None
            assert self.process.stdout is not None
            print(json.dumps([streams, questions, limit]), file=self.process.stdin, flush=True)
            speed, requests = json.loads(await asyncio.to_thread(self.process.stdout.readline))
            return Measured(speed, [Request(*request) for request in requests])
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:
            return await load(lambda q, n: over_http(session, self.address, q, n),
                              streams, questions, limit)  # fmt: skip


async def load(ask: Ask, streams: int, questions: int, limit: int) -> Measured:
    """As many clients as streams, each with its questions, one after the other."""

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


async def over_http(
    session: aiohttp.ClientSession, address: str, question: str, limit: int
) -> AsyncIterator[int]:
    """The growth of the usage, event by event: pieces of an answer may hold several tokens."""
    body = {
        "model": "bench", "messages": [{"role": "user", "content": question}], "stream": True,
        "max_tokens": limit, "stream_options": {"include_usage": True}, **rules(address),
    }  # fmt: skip
    path = f"{address.split('#')[0]}/v1/chat/completions"
    seen = 0
    async with session.post(path, json=body) as response:
        assert response.status == 200, await response.text()
        async for line in response.content:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if event.get("usage"):
                # Whatever pieces held several tokens, or none that are text.
                yield event["usage"]["completion_tokens"] - seen
            elif event["choices"][0]["delta"].get("content"):
                seen += 1
                yield 1


def rules(address: str) -> dict[str, Any]:
    """Greedy, and never the end of the turn, where the engine knows biases."""
    end_of_turn = address.split("#")[1]
    if end_of_turn == "none":
        return {}
    return {"temperature": 0, "logit_bias": {end_of_turn: -100}}


# -------------------------------------------------------------------------------- the contenders


def settings_of(arguments: argparse.Namespace) -> Any:
    from ochat_ray.serve.args import ServeArgs

    fields = {
        "model": arguments.model, "engine": arguments.engine, "served_model_name": "bench",
        "num_cpus": arguments.cpus, "num_gpus": arguments.gpus, "min_replicas": 1,
        "max_replicas": 1, "max_ongoing": 32, "max_queued": 4096, "context_length": 1024,
        "ui": False,
        # Behind HAProxy all clients look alike, so a server without keys has to be told.
        "insecure_open": arguments.contender == "endpoint+haproxy",
    }  # fmt: skip
    return ServeArgs.model_validate(fields)


async def serve_bare(arguments: argparse.Namespace) -> None:
    """The engine in this process; questions come as JSON lines."""
    from ochat_ray.serve.args import resolve
    from ochat_ray.serve.deployment import open_engine
    from ochat_ray.serve.engines.base import Sampling
    from ochat_ray.template import encode
    from ochat_ray.tokenizer import end_of_turn_id, load_tokenizer

    settings = resolve(settings_of(arguments))
    engine = open_engine(settings.engine)
    tokenizer = load_tokenizer(settings.ingress.directory)
    end = end_of_turn_id(tokenizer)
    count = 0

    async def ask(question: str, limit: int) -> AsyncIterator[int]:
        nonlocal count
        count += 1
        turns = [{"role": "user", "text": question}]
        ids, _ = encode(turns, settings.ingress.model_type, tokenizer, add_generation_prompt=True)
        sampling = Sampling(
            max_tokens=limit, temperature=0, logit_bias=((end, -100.0),), stop_ids=(end,)
        )
        async with aclosing(engine.submit(f"r{count}", ids, sampling)) as deltas:
            async for delta in deltas:
                yield len(delta.token_ids)

    print("ready -", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        print(json.dumps(await load(ask, *json.loads(line))), flush=True)
    engine.close()


def serve_endpoint(arguments: argparse.Namespace) -> None:
    """The application on a Ray of its own, until standard input ends."""
    import ray
    from ray import serve

    from ochat_ray.serve import app
    from ochat_ray.tokenizer import end_of_turn_id, load_tokenizer

    port = free_port()
    ray.init(
        num_cpus=8, num_gpus=arguments.gpus or None, include_dashboard=False, log_to_driver=False
    )
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    args = settings_of(arguments)
    serve.run(app(args), name="bench")
    scripted = args.engine == "scripted"
    end = "none" if scripted else end_of_turn_id(load_tokenizer(args.model))
    print(f"ready http://127.0.0.1:{port}#{end}", flush=True)
    sys.stdin.read()
    serve.shutdown()
    ray.shutdown()


def serve_one_at_a_time(arguments: argparse.Namespace) -> None:
    """`generate` behind a lock, as servers of 2023 did it."""
    from threading import Lock, Thread

    import torch
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request as HttpRequest
    from starlette.responses import StreamingResponse
    from starlette.routing import Route
    from transformers import AutoModelForCausalLM, TextIteratorStreamer

    from ochat_ray.serve.engines.transformers import choose_dtype
    from ochat_ray.template import encode
    from ochat_ray.tokenizer import end_of_turn_id, load_tokenizer

    torch.set_num_threads(arguments.cpus)
    tokenizer = load_tokenizer(arguments.model)
    model: Any = AutoModelForCausalLM.from_pretrained(
        arguments.model, dtype=choose_dtype("auto", torch.device("cpu"))
    )
    end = end_of_turn_id(tokenizer)
    lock = Lock()

    async def answer(http: HttpRequest) -> StreamingResponse:
        body = await http.json()
        turns = [{"role": "user", "text": body["messages"][0]["content"]}]
        ids, _ = encode(turns, "openchat", tokenizer, add_generation_prompt=True)
        limit = body["max_tokens"]

        def events() -> Any:
            with lock:
                streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
                options = {
                    "inputs": torch.tensor([ids]), "streamer": streamer, "do_sample": False,
                    "max_new_tokens": limit, "min_new_tokens": limit, "eos_token_id": end,
                }  # fmt: skip
                thread = Thread(target=model.generate, kwargs=options)
                thread.start()
                for text in streamer:
                    chunk = {"choices": [{"delta": {"content": text}}]}
                    yield f"data: {json.dumps(chunk)}\n\n"
                thread.join()
            usage = {"completion_tokens": limit}
            yield f"data: {json.dumps({'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    port = free_port()
    server = Starlette(routes=[Route("/v1/chat/completions", answer, methods=["POST"])])
    Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    config = uvicorn.Config(server, host="127.0.0.1", port=port, log_level="error")
    print(f"ready http://127.0.0.1:{port}#{end}", flush=True)
    uvicorn.Server(config).run()


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
