"""Server processes for benchmarks/serve_speed.py; each answers until its standard input ends.

A server prints "ready ADDRESS#ID" with the id of the end-of-turn token, or "ready -" if it takes
requests as lines of its standard input.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

from serve_load import load

from ochat_ray.cluster.local_cluster import free_port


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contender")
    parser.add_argument("--model", required=True)
    parser.add_argument("--engine", required=True)
    parser.add_argument("--cpus", type=int, required=True)
    parser.add_argument("--gpus", type=float, required=True)
    parser.add_argument("--kv-cache-gib", type=float, required=True)
    arguments = parser.parse_args()
    if arguments.contender == "bare":
        asyncio.run(serve_bare(arguments))
    elif arguments.contender == "2023":
        serve_one_at_a_time(arguments)
    elif arguments.contender.startswith("ray.serve.llm"):
        serve_ray_llm(arguments)
    else:
        serve_endpoint(arguments)


def settings_of(arguments: argparse.Namespace) -> Any:
    from ochat_ray.serve.args import ServeArgs

    fields = {
        "model": arguments.model, "engine": arguments.engine, "served_model_name": "bench",
        "num_cpus": arguments.cpus, "num_gpus": arguments.gpus, "min_replicas": 1,
        "max_replicas": 1, "max_ongoing": 32, "max_queued": 4096, "context_length": 1024,
        "kv_cache_gib": arguments.kv_cache_gib, "ui": False,
        # Behind HAProxy all clients look alike, so a server without keys must be opened explicitly.
        "insecure_open": arguments.contender.endswith("+haproxy"),
    }  # fmt: skip
    return ServeArgs.model_validate(fields)


async def serve_bare(arguments: argparse.Namespace) -> None:
    """Run the engine in this process; requests are JSON lines."""
    from ochat_ray.serve.args import resolve
    from ochat_ray.serve.deployment import open_engine
    from ochat_ray.serve.engines.base import Sampling
    from ochat_ray.serve.served_model import open_served_tokenizer
    from ochat_ray.tokenization.template import encode
    from ochat_ray.tokenization.tokenizer import ends_of_turn

    settings = resolve(settings_of(arguments))
    engine = open_engine(settings.engine)
    tokenizer = open_served_tokenizer(Path(settings.ingress.directory), settings.ingress.model_type)
    end = ends_of_turn(tokenizer)[0]
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
    """Run the application on its own Ray, until standard input ends."""
    from ochat_ray.serve import app

    args = settings_of(arguments)
    serve_application(lambda: app(args), arguments)


def serve_ray_llm(arguments: argparse.Namespace) -> None:
    """Run the OpenAI application of ray.serve.llm over vLLM, with our limits and settings."""

    def application() -> Any:
        from ray.serve.llm import LLMConfig, build_openai_app

        config = LLMConfig(
            model_loading_config={"model_id": "bench", "model_source": arguments.model},
            engine_kwargs={
                "max_model_len": 1024, "max_num_seqs": 32, "max_num_batched_tokens": 2048,
                "enforce_eager": True, "enable_chunked_prefill": False,
                "generation_config": "vllm",
                "kv_cache_memory_bytes": int(arguments.kv_cache_gib * 2**30),
            },
            placement_group_config={"bundle_per_worker": {"CPU": arguments.cpus}},
            deployment_config={"num_replicas": 1, "max_ongoing_requests": 64},
            runtime_env={
                "env_vars": {
                    "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1",
                    "OMP_NUM_THREADS": str(arguments.cpus), "VLLM_CPU_OMP_THREADS_BIND": "nobind",
                }
            },
            log_engine_metrics=False,
        )  # fmt: skip
        return build_openai_app({"llm_configs": [config]})

    serve_application(application, arguments)


def serve_application(application: Callable[[], Any], arguments: argparse.Namespace) -> None:
    """Run an application on a Ray of its own, until standard input ends."""
    import ray
    from ray import serve

    port = free_port()
    ray.init(
        num_cpus=8,
        num_gpus=1 if arguments.gpus else None,
        include_dashboard=False,
        log_to_driver=False,
    )
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(application(), name="bench")
    end = "none" if arguments.engine == "scripted" else end_of_turn(arguments)
    print(f"ready http://127.0.0.1:{port}#{end}", flush=True)
    sys.stdin.read()
    serve.shutdown()
    ray.shutdown()


def end_of_turn(arguments: argparse.Namespace) -> int:
    """Return the id of the token that ends an answer of the model."""
    from ochat_ray.serve.args import resolve
    from ochat_ray.serve.served_model import open_served_tokenizer
    from ochat_ray.tokenization.tokenizer import ends_of_turn

    ingress = resolve(settings_of(arguments)).ingress
    return int(ends_of_turn(open_served_tokenizer(Path(ingress.directory), ingress.model_type))[0])


def serve_one_at_a_time(arguments: argparse.Namespace) -> None:
    """Serve `generate` behind a lock, as servers of 2023 did."""
    from threading import Lock, Thread

    import torch
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request as HttpRequest
    from starlette.responses import StreamingResponse
    from starlette.routing import Route
    from transformers import AutoModelForCausalLM, TextIteratorStreamer

    from ochat_ray.serve.engines.transformers import choose_dtype
    from ochat_ray.tokenization.template import encode
    from ochat_ray.tokenization.tokenizer import end_of_turn_id, load_tokenizer

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
                    "inputs": torch.tensor([ids]),
                    "streamer": streamer,
                    "do_sample": False,
                    "max_new_tokens": limit,
                    "min_new_tokens": limit,
                    "eos_token_id": end,
                }
                thread = Thread(target=model.generate, kwargs=options)
                thread.start()
                for text in streamer:
                    chunk = {"choices": [{"delta": {"content": text}}]}
                    yield f"data: {json.dumps(chunk)}\n\n"
                thread.join()
            usage = {"completion_tokens": limit}
            yield f"data: {json.dumps({'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    server = Starlette(routes=[Route("/v1/chat/completions", answer, methods=["POST"])])
    Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listening:
        print(f"ready http://127.0.0.1:{listening.getsockname()[1]}#{end}", flush=True)
        uvicorn.Server(uvicorn.Config(server, log_level="error")).run(sockets=[listening])


if __name__ == "__main__":
    main()
