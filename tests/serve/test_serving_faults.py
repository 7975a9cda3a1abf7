"""What a killed replica and a new version cost: time, and no request that had not begun."""

from __future__ import annotations

import asyncio
import json
import os
import signal

import httpx
import pytest

from tests.processes import descendants
from tests.serve.application import deploy, deployed, replicas, running, wait_until

pytestmark = pytest.mark.ray

ASK = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 40}
# Seconds, also of a model this small: no end of the turn, and the likeliest tokens with each one.
LONG = ASK | {"max_tokens": 3900, "logit_bias": {"300": -100}, "logprobs": True, "top_logprobs": 20}
PATH = "/v1/chat/completions"


def replica_pids(name):
    return [process.pid for process in descendants(f"ray::ServeReplica:{name}:Model")]


def test_a_killed_replica_costs_time_and_only_the_streams_that_had_begun(cluster, model_directory):
    async def ask():
        async with httpx.AsyncClient(base_url=f"{cluster}/killed", timeout=120) as client:
            async with client.stream("POST", PATH, json=LONG | {"stream": True}) as streaming:
                lines = streaming.aiter_lines()
                begun = [await anext(lines) for _ in range(5)]
                waiting = [
                    asyncio.create_task(client.post(PATH, json=ASK | {"stream": stream}))
                    for stream in (False, True)
                ]
                await asyncio.sleep(0.5)
                (pid,) = replica_pids("killed")
                os.kill(pid, signal.SIGKILL)
                rest = [line async for line in lines]
            return begun, rest, await asyncio.gather(*waiting)

    one_at_once = {"engine": "transformers", "max_ongoing": 1, "context_length": 4096}
    with deployed(model_directory, "killed", **one_at_once):
        begun, rest, (whole, streamed) = asyncio.run(ask())
        wait_until(lambda: replicas("killed") == 1)
    assert "content" in "".join(begun)
    last = json.loads([line for line in rest if line][-1].removeprefix("data: "))
    assert last["error"]["code"] == "not_ready"
    assert whole.status_code == 200
    assert whole.json()["usage"]["completion_tokens"] > 0
    assert streamed.text.endswith("data: [DONE]\n\n")


def test_a_new_version_under_load_loses_nothing(cluster, model_directory):
    async def ask_until(done, client, stream):
        answers = []
        while not done.is_set():
            answer = await client.post(PATH, json=ASK | {"max_tokens": 100, "stream": stream})
            ended = not stream or answer.text.endswith("data: [DONE]\n\n")
            answers.append((answer.status_code, ended))
        return answers

    def renew():  # another version: its context is shorter
        deploy(model_directory, "renewed", **version, context_length=1024)

    async def run():
        done = asyncio.Event()
        async with httpx.AsyncClient(base_url=f"{cluster}/renewed", timeout=120) as client:
            askers = [
                asyncio.create_task(ask_until(done, client, bool(number % 2)))
                for number in range(6)
            ]
            await asyncio.sleep(1)
            await asyncio.to_thread(renew)
            await asyncio.sleep(1)
            done.set()
            return [answer for answers in await asyncio.gather(*askers) for answer in answers]

    version = {"engine": "scripted", "num_cpus": 0.5, "max_ongoing": 4}
    with deployed(model_directory, "renewed", **version):
        old = replica_pids("renewed")
        answers = asyncio.run(run())
        assert len(answers) > 20
        assert set(answers) == {(200, True)}
        models = httpx.get(f"{cluster}/renewed/v1/models").json()
        assert models["data"][0]["max_model_len"] == 1024
        wait_until(lambda: not set(old) & set(replica_pids("renewed")), 60)
        wait_until(lambda: running(f"{cluster}/renewed") == 0)


def test_ten_times_what_it_holds_is_refused_at_once_and_forgotten(cluster, model_directory):
    async def flood():
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(
            base_url=f"{cluster}/flooded", timeout=120, limits=limits
        ) as client:
            answers = await asyncio.gather(*[client.post(PATH, json=ASK) for _ in range(60)])
        return [(answer.status_code, answer.json()) for answer in answers]

    with deployed(model_directory, "flooded", max_ongoing=2, max_queued=4):
        for _ in range(2):
            answers = asyncio.run(flood())
            statuses = [status for status, _ in answers]
            assert set(statuses) == {200, 429}
            assert statuses.count(200) >= 6
            assert {body["error"]["code"] for status, body in answers if status == 429} == {
                "overloaded"
            }
        wait_until(lambda: running(f"{cluster}/flooded") == 0)
