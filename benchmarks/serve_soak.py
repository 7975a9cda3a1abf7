"""Soak test of serving at twice its capacity, with failing clients and replicas.

    python benchmarks/serve_soak.py --model runs/demo/model --minutes 10

Starts its own Ray, two replicas of eight requests each with a short queue, and thirty-two
concurrent clients: streams and complete answers, tools, JSON schemas, /v1/responses, scored prompts
and embeddings, clients that disconnect early, malformed and hostile bodies, and a model replica
killed (SIGKILL) every minute. Every response must be 200, a documented 4xx, 429 or 503; every
answer complete or ended with an error event. At the end no slot may be occupied, and the memory of
ingress and proxy is compared with that after the first minute. Exit status 1 on failure.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from typing import Any

import aiohttp
import psutil
from serve_hostile import HOSTILE

CLIENTS = 32
ALLOWED = {200, 400, 401, 404, 405, 413, 429, 503}
KEY = "key-for-the-soak"
QUESTION = "What is a soak test, and what does it find that others do not?"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="runs/demo/model")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    url = deploy(arguments.model)
    soak = Soak(url, random.Random(arguments.seed), arguments.minutes * 60)
    try:
        asyncio.run(soak.run())
        sys.exit(soak.report())
    finally:
        shut_down()


def deploy(model: str, replicas: int = 2) -> str:
    """Start the application on a local Ray, and return its address."""
    import ray
    from ray import serve

    from ochat_ray.cluster.local_cluster import free_port
    from ochat_ray.serve import ServeArgs, app

    port = free_port()
    with tempfile.NamedTemporaryFile("w", delete=False) as keys:
        keys.write(f"soak:{KEY}\n")
    fields = {
        "model": model, "served_model_name": "soak", "engine": "transformers", "num_cpus": 0.5,
        "min_replicas": replicas, "max_replicas": replicas, "max_ongoing": 8, "max_queued": 8,
        "keys": keys.name, "context_length": 1024, "ui": False, "request_timeout_s": 120,
        "embeddings": True,
    }  # fmt: skip
    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(app(ServeArgs.model_validate(fields)), name="soak")
    return f"http://127.0.0.1:{port}"


def shut_down() -> None:
    """Shut down Serve and the Ray."""
    import ray
    from ray import serve

    serve.shutdown()
    ray.shutdown()


class Soak:
    """Clients, killer, and collected results."""

    def __init__(self, url: str, draw: random.Random, seconds: float) -> None:
        self.url = url
        self.draw = draw
        self.end = time.monotonic() + seconds
        self.statuses: Counter[int | str] = Counter()
        self.wrong: list[str] = []
        self.kills = 0
        self.memory: list[tuple[float, float]] = []

    async def run(self) -> None:
        """Generate load until the time is up, then wait for quiet."""
        headers = {"Authorization": f"Bearer {KEY}"}
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
            self.session = session
            killer = asyncio.create_task(self.kill_every_minute())
            await asyncio.gather(*[self.client() for _ in range(CLIENTS)])
            killer.cancel()
            await asyncio.gather(killer, return_exceptions=True)
            await asyncio.sleep(15)
            self.memory.append((time.monotonic(), memory_mib()))
            self.held = await self.slots()

    async def client(self) -> None:
        """Send one request after the other, each of a randomly drawn kind."""
        kinds = {
            self.stream: 4, self.whole: 3, self.vanish: 2, self.malformed: 1, self.tools: 1,
            self.schema: 1, self.responses: 1, self.scores: 1, self.embeddings: 1, self.hostile: 1,
        }  # fmt: skip
        while time.monotonic() < self.end:
            kind = self.draw.choices([*kinds], weights=[*kinds.values()])[0]
            try:
                await kind()
            except (aiohttp.ClientError, TimeoutError) as error:
                self.wrong.append(f"{kind.__name__}: {type(error).__name__}: {error}")
            await asyncio.sleep(self.draw.random() / 5)

    def body(self, **fields: Any) -> dict[str, Any]:
        """Return a request with random lengths of question and answer."""
        text = QUESTION * self.draw.randint(1, 8)
        limit = self.draw.randint(1, 120)
        return {
            "model": "soak",
            "messages": [{"role": "user", "content": text}],
            "max_tokens": limit,
            **fields,
        }

    async def stream(self) -> None:
        """Check that a stream ends with [DONE] or with an error event."""
        async with self.session.post(self.path(), json=self.body(stream=True)) as response:
            self.count(response.status)
            text = await response.text()
            if response.status != 200:
                self.check_error(text)
                return
            last = [event for event in text.split("\n\n") if event][-1].removeprefix("data: ")
            if last == "[DONE]":
                self.statuses["streams, whole"] += 1
            elif "error" in json.loads(last):
                self.statuses["streams, ended by an error event"] += 1
            else:
                self.wrong.append(f"a stream ended with {last[:80]}")

    async def whole(self) -> None:
        """Request a complete answer, sometimes two."""
        body = self.body(n=self.draw.randint(1, 2))
        async with self.session.post(self.path(), json=body) as response:
            self.count(response.status)
            text = await response.text()
            if response.status != 200:
                self.check_error(text)
            elif json.loads(text)["usage"]["completion_tokens"] < 1:
                self.wrong.append("an answer without a token")

    async def tools(self) -> None:
        """Request a call of a tool, which must have arguments of its schema."""
        function = {
            "name": "sea",
            "parameters": {
                "type": "object",
                "properties": {"deep": {"type": "boolean"}},
                "required": ["deep"],
                "additionalProperties": False,
            },
        }
        choice = self.draw.choice(["auto", "required"])
        body = self.body(tools=[{"type": "function", "function": function}], tool_choice=choice)
        answer = await self.ask(self.path(), body)
        for one in answer["choices"] if answer else ():
            for call in one["message"].get("tool_calls") or ():
                if one["finish_reason"] == "tool_calls":
                    self.expect([*json.loads(call["function"]["arguments"])] == ["deep"], "a call")

    async def schema(self) -> None:
        """Request an answer of a JSON schema, which a complete one must follow."""
        name = f"k{self.draw.randint(0, 99)}"
        schema = {"type": "object", "properties": {name: {"type": "boolean"}}, "required": [name]}
        wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        answer = await self.ask(self.path(), self.body(response_format=wanted))
        for one in answer["choices"] if answer else ():
            if one["finish_reason"] == "stop":
                found = json.loads(one["message"]["content"])
                self.expect(isinstance(found.get(name), bool), "an answer to a schema")

    async def responses(self) -> None:
        """Request an answer of /v1/responses."""
        body = {"model": "soak", "input": QUESTION, "max_output_tokens": 40, "store": False}
        answer = await self.ask(f"{self.url}/v1/responses", body)
        self.expect(not answer or answer["status"] in ("completed", "incomplete"), "a response")

    async def scores(self) -> None:
        """Request log-probabilities of a prompt, as lm-eval does."""
        body = {
            "model": "soak",
            "prompt": QUESTION * self.draw.randint(1, 8),
            "max_tokens": 0,
            "echo": True,
            "logprobs": 1,
        }
        answer = await self.ask(f"{self.url}/v1/completions", body)
        for one in answer["choices"] if answer else ():
            found = one["logprobs"]["token_logprobs"]
            self.expect(len(found) > 5 and all(x <= 0 for x in found[1:]), "scores")

    async def embeddings(self) -> None:
        """Request embeddings of two texts."""
        body = {"model": "soak", "input": [QUESTION, QUESTION * self.draw.randint(1, 8)]}
        answer = await self.ask(f"{self.url}/v1/embeddings", body)
        self.expect(not answer or len(answer["data"]) == 2, "embeddings")

    async def hostile(self) -> None:
        """Send one of the requests of serve_hostile.py."""
        body = self.draw.choice([*HOSTILE.values()])
        headers = {"Content-Type": "application/json"}
        async with self.session.post(self.path(), data=body, headers=headers) as response:
            self.count(response.status)
            text = await response.text()
            if response.status != 200:
                self.check_error(text)

    async def ask(self, url: str, body: dict[str, Any]) -> Any:
        """Return the answer to a request; None if it was rejected."""
        async with self.session.post(url, json=body) as response:
            self.count(response.status)
            text = await response.text()
            if response.status != 200:
                self.check_error(text)
                return None
            return json.loads(text)

    def expect(self, holds: bool, what: str) -> None:
        self.statuses[f"{what}: checked"] += 1
        if not holds:
            self.wrong.append(f"{what} is not as requested")

    async def vanish(self) -> None:
        """Disconnect in the middle of an answer."""
        body = self.body(stream=self.draw.random() < 0.5, max_tokens=400)
        try:
            async with asyncio.timeout(self.draw.uniform(0.05, 2)):
                async with self.session.post(self.path(), json=body) as response:
                    await response.read()
        except TimeoutError:
            self.statuses["clients that left"] += 1

    async def malformed(self) -> None:
        """Send a request that no server should accept."""
        bodies = [self.body(temperature=99), self.body(tools=["x"]), self.body(max_tokens=10**9)]
        content = self.draw.choice(
            [
                *(json.dumps(body).encode() for body in bodies),
                b"{", b"", b"\xff\xfe", b"[]", b'{"model": "soak"}',
                b'{"model": "x", "messages": []}', b"x" * (3 * 2**20),
            ]
        )  # fmt: skip
        headers = {"Content-Type": "application/json"}
        if self.draw.random() < 0.2:
            headers["Authorization"] = "Bearer wrong"
        async with self.session.post(self.path(), data=content, headers=headers) as response:
            self.count(response.status)
            self.check_error(await response.text())
            if response.status == 200:
                self.wrong.append("a malformed body was answered")

    async def kill_every_minute(self) -> None:
        """Kill one model replica (SIGKILL) in the middle of every minute."""
        await asyncio.sleep(30)
        while True:
            if len(self.memory) < 1:
                self.memory.append((time.monotonic(), memory_mib()))
            pids = processes("ray::ServeReplica:soak:Model")
            os.kill(self.draw.choice(pids).pid, signal.SIGKILL)
            self.kills += 1
            await asyncio.sleep(60)

    async def slots(self) -> int:
        """Return the number of requests in the engines, by their own count."""
        async with self.session.get(f"{self.url}/metrics") as response:
            lines = (await response.text()).splitlines()
        held = ("ochat_ray_running_requests{", "ochat_ray_waiting_requests{")
        return int(sum(float(line.split()[-1]) for line in lines if line.startswith(held)))

    def path(self) -> str:
        return f"{self.url}/v1/chat/completions"

    def count(self, status: int) -> None:
        self.statuses[status] += 1
        if status not in ALLOWED:
            self.wrong.append(f"status {status}")

    def check_error(self, text: str) -> None:
        try:
            error = json.loads(text)["error"]
            assert set(error) == {"message", "type", "param", "code"}
        except (ValueError, KeyError, TypeError, AssertionError):
            self.wrong.append(f"an error without OpenAI's body: {text[:80]}")

    def report(self) -> int:
        """Print the results and return the exit status."""
        for name, count in sorted(self.statuses.items(), key=str):
            print(f"{name}: {count}")
        print(f"replicas killed: {self.kills}; requests held at the end: {self.held}")
        before, after = self.memory[0][1], self.memory[-1][1]
        print(f"ingress and proxy: {before:.0f} MiB after half a minute, {after:.0f} at the end")
        for text, count in Counter(self.wrong).most_common(10):
            print(f"WRONG, {count} times: {text}")
        return 1 if self.wrong or self.held or after > 1.25 * before + 50 else 0


def processes(name: str) -> list[psutil.Process]:
    """Return the processes whose title contains the name."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if name in " ".join(process.info["cmdline"] or [])
    ]


def memory_mib() -> float:
    """Return the private memory of the ingress and the proxy."""
    found = [*processes("ray::ServeReplica:soak:Ingress"), *processes("ray::ProxyActor")]
    return sum(process.memory_full_info().uss for process in found) / 2**20


if __name__ == "__main__":
    main()
