"""Throughput and latency of the bare engines.

    python benchmarks/serve_engines.py --model runs/demo/model
    python benchmarks/serve_engines.py --model DIR --vllm-python .venv-vllm/bin/python --json out
    python benchmarks/serve_engines.py --model DIR --ablate --streams 1 16

The engines run behind the interface of `ochat_ray.serve.engines.base`, without Serve or HTTP: each
in a separate process with its own interpreter, opened once. Without `--vllm-python` vLLM is
reported as absent. With `--ablate` the transformers engine runs twice more, on a CPU: with
transformers' own attention instead of ours per request, and with PyTorch's plain linear layers
instead of packed ones.

In a round every engine answers 1, 4, 16 and 32 concurrent streams, with prompts of random ids that
no request had before, and answers of a fixed length, since no id stops them. Both engines get the
same prompts, one after the other, in alternating order; while one generates, the other is idle. The
temperature is 1, the default for clients.

Time is measured from the first submission to the last token. TTFT is the time from a request's
submission to its first tokens, and TPOT that per further token; percentiles are over the requests
of all rounds. A ratio is of one round, so a temporary slowdown of the machine affects both engines.
CPU time is that of the engine's process and its children.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
ENGINES = ("transformers", "vllm")
ABLATIONS = ("plain attention", "plain linears")
"""Variants of the transformers engine, without one of its parts for CPUs."""

Round = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="a directory that serving would take")
    parser.add_argument("--vllm-python", type=Path, help="an interpreter that has vLLM")
    parser.add_argument("--ablate", action="store_true", help="parts of our engine left out")
    parser.add_argument("--streams", nargs="+", type=int, default=[1, 4, 16, 32])
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--answer-tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--gpus", type=float, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", choices=ENGINES + ABLATIONS, help=argparse.SUPPRESS)
    parser.add_argument("--replies", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        with os.fdopen(arguments.replies, "w") as replies:
            asyncio.run(work(arguments, replies))
    else:
        compare(arguments)


# ---- one engine, in its own process


async def work(arguments: argparse.Namespace, replies: IO[str]) -> None:
    """Answer each line of stdin, the seed and streams of a round, with a line of results."""
    import psutil

    from ochat_ray.serve.args import ServeArgs, resolve
    from ochat_ray.serve.engines.base import Engine

    options = {
        "model": arguments.model,
        "engine": "transformers" if arguments.worker in ABLATIONS else arguments.worker,
        "context_length": max(16, arguments.prompt_tokens + arguments.answer_tokens),
        "num_cpus": arguments.threads,
        "num_gpus": arguments.gpus,
        "max_ongoing": max(arguments.streams),
    }
    settings = resolve(ServeArgs.model_validate(options)).engine
    engine: Engine
    if arguments.worker == "vllm":
        from ochat_ray.serve.engines.vllm import VllmEngine

        engine = VllmEngine(settings)
    else:
        from ochat_ray.serve.engines import transformers

        leave_out(arguments.worker, transformers)
        engine = transformers.TransformersEngine(settings)
    process = psutil.Process()

    def cpu_s() -> float:
        family = [process, *process.children(recursive=True)]
        return sum(sum(member.cpu_times()[:2]) for member in family)

    print(json.dumps({"capacity": engine.capacity().kv_tokens}), file=replies, flush=True)
    try:
        while line := await asyncio.to_thread(sys.stdin.readline):
            asked = json.loads(line)
            ids = np.random.default_rng(asked["seed"]).integers(
                10, settings.vocabulary - 10, (asked["streams"], arguments.prompt_tokens)
            )
            began, cpu_began = time.perf_counter(), cpu_s()
            streams = await asyncio.gather(
                *[
                    answer(engine, f"{asked['seed']}-{row}", prompt, arguments)
                    for row, prompt in enumerate(ids.tolist())
                ]
            )
            wall, tokens = time.perf_counter() - began, arguments.answer_tokens * len(streams)
            result = {
                "tokens_per_s": tokens / wall,
                "cpu_ms_per_token": 1000 * (cpu_s() - cpu_began) / tokens,
                "ttft_s": [first for first, _ in streams],
                "tpot_s": [pause for _, pause in streams],
            }
            print(json.dumps(result), file=replies, flush=True)
    finally:
        engine.close()


def leave_out(ablation: str, module: Any) -> None:
    """Replace the part of the transformers engine that an ablation leaves out."""
    if ablation == "plain attention":
        module.suits = lambda _: False
    elif ablation == "plain linears":
        module.pack_linears = lambda _: 0


async def answer(
    engine: Any, name: str, prompt: list[int], arguments: argparse.Namespace
) -> tuple[float, float]:
    """Return the seconds to the first tokens, and for each of the others."""
    from ochat_ray.serve.engines.base import Sampling

    rules = Sampling(max_tokens=arguments.answer_tokens, temperature=arguments.temperature)
    began = time.perf_counter()
    first, first_tokens, tokens = 0.0, 0, 0
    async for delta in engine.submit(name, prompt, rules):
        if not tokens:
            first, first_tokens = time.perf_counter(), len(delta.token_ids)
        tokens += len(delta.token_ids)
    assert tokens == arguments.answer_tokens, f"{tokens} tokens instead"
    return first - began, (time.perf_counter() - first) / max(1, tokens - first_tokens)


# ---- the comparison


@dataclass(frozen=True, kw_only=True, slots=True)
class Worker:
    """Process of an engine, and the pipe for its results."""

    name: str
    process: subprocess.Popen[str]
    replies: IO[str]

    def reply(self) -> Round:
        line = self.replies.readline()
        if not line:
            sys.exit(f"serve_engines: {self.name} ended with code {self.process.wait()}")
        return dict(json.loads(line))

    def run(self, streams: int, seed: int) -> Round:
        assert self.process.stdin is not None
        print(json.dumps({"streams": streams, "seed": seed}), file=self.process.stdin, flush=True)
        return self.reply()


def start(name: str, interpreter: Path) -> Worker:
    reading, writing = os.pipe()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": ""}
    del environment["OMP_NUM_THREADS"]  # each engine chooses its own value
    process = subprocess.Popen(
        [interpreter, *sys.argv, "--worker", name, "--replies", str(writing)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=environment,
        pass_fds=[writing],
    )
    os.close(writing)
    worker = Worker(name=name, process=process, replies=os.fdopen(reading))
    worker.reply()
    return worker


def compare(arguments: argparse.Namespace) -> None:
    interpreters = {"transformers": Path(sys.executable)}
    if arguments.ablate:
        interpreters |= dict.fromkeys(ABLATIONS, Path(sys.executable))
    if arguments.vllm_python:
        interpreters["vllm"] = arguments.vllm_python
    else:
        print("vllm: absent, no --vllm-python")
    workers = [start(name, path) for name, path in interpreters.items()]
    results: dict[tuple[str, int], list[Round]] = defaultdict(list)
    try:
        for worker in workers:
            worker.run(max(arguments.streams), seed=0)  # warms up
        for turn in range(arguments.rounds):
            for streams in arguments.streams:
                for worker in workers if turn % 2 == 0 else workers[::-1]:
                    result = worker.run(streams, seed=1000 * (turn + 1) + streams)
                    results[worker.name, streams].append(result)
                    speed = f"{result['tokens_per_s']:>8.1f} tokens/s"
                    cpu = f"{result['cpu_ms_per_token']:>8.2f} CPU ms/token"
                    print(f"round {turn + 1}  {worker.name:<17}{streams:>3} {speed}{cpu}")
    finally:
        for worker in workers:
            assert worker.process.stdin is not None
            worker.process.stdin.close()
            worker.process.wait(60)
    rows = [row(name, streams, rounds, results) for (name, streams), rounds in results.items()]
    report(rows)
    if arguments.json:
        options = {key: str(value) for key, value in vars(arguments).items()}
        absent = [name for name in ENGINES if name not in interpreters]
        record = {"arguments": options, "absent": absent, "rows": rows}
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


def row(
    name: str, streams: int, rounds: list[Round], results: dict[tuple[str, int], list[Round]]
) -> dict[str, Any]:
    """Return one engine's row; spreads are (median, minimum, maximum) over rounds."""
    others = results.get(("vllm", streams), [])
    pairs = zip(rounds, others, strict=False)
    ours = zip(rounds, results["transformers", streams], strict=False)
    return {
        "engine": name,
        "streams": streams,
        "tokens_per_s": spread([one["tokens_per_s"] for one in rounds]),
        "cpu_ms_per_token": spread([one["cpu_ms_per_token"] for one in rounds]),
        "ttft_ms": percentiles([value for one in rounds for value in one["ttft_s"]]),
        "tpot_ms": percentiles([value for one in rounds for value in one["tpot_s"]]),
        "of_vllm": spread([one["tokens_per_s"] / other["tokens_per_s"] for one, other in pairs]),
        "of_ours": spread([one["tokens_per_s"] / other["tokens_per_s"] for one, other in ours]),
    }


def spread(values: list[float]) -> tuple[float, float, float] | None:
    return (statistics.median(values), min(values), max(values)) if values else None


def percentiles(seconds: list[float]) -> tuple[float, float]:
    """Return the 50th and 99th percentile, in milliseconds."""
    middle, high = np.percentile(seconds, [50, 99]) * 1000
    return float(middle), float(high)


def report(rows: list[dict[str, Any]]) -> None:
    def shown(values: tuple[float, ...] | None, digits: int) -> str:
        if values is None:
            return "-"
        middle, least, most = (f"{value:.{digits}f}" for value in values)
        return f"{middle} ({least}-{most})"

    print(
        f"\n{'engine':<17}{'streams':>7}{'tokens/s':>22}{'of vLLM':>18}{'of ours':>18}"
        f"{'CPU ms/token':>22}"
        f"{'TTFT p50, p99 ms':>20}{'TPOT p50, p99 ms':>20}"
    )
    for one in sorted(rows, key=lambda one: (one["streams"], one["engine"])):
        waits = [f"{one[key][0]:.0f}, {one[key][1]:.0f}" for key in ("ttft_ms", "tpot_ms")]
        print(
            f"{one['engine']:<17}{one['streams']:>7}{shown(one['tokens_per_s'], 1):>22}"
            f"{shown(one['of_vllm'], 2):>18}{shown(one['of_ours'], 2):>18}"
            f"{shown(one['cpu_ms_per_token'], 2):>22}"
            f"{waits[0]:>20}{waits[1]:>20}"
        )


if __name__ == "__main__":
    main()
