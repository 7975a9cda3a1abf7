"""Replicas on two hosts, and what the loss of one costs: the streams that it carried."""

import asyncio
import json
import time
from dataclasses import dataclass

import httpx
import pytest

from tests.cluster.conftest import free_port, wait_for
from tests.cluster.jobs import meanwhile

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def served(cluster, trained):
    """The URL of that model, served by a replica on each worker."""
    start = "serve run ochat_ray.serve:app model=s3://bucket/runs/model min_replicas=2 ui=false"
    cluster.run("ray", "job", "submit", "--no-wait", "--", *start.split(), "kv_cache_gib=0.25")
    port = free_port()
    with cluster.forwarded(port, 8000):
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: is_ready(url), "a replica", 180)
        wait_for(lambda: len(cluster.hosts_of("Model")) == 2, "replicas on two hosts", 120)
        yield url
        cluster.submit("serve", "shutdown", "--yes")


def is_ready(url):
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False


def test_replicas_on_two_hosts_answer(served, trained):
    model = httpx.get(f"{served}/v1/models").json()["data"][0]
    assert model["training"]["data_digest"] == trained["data_digest"]
    ask = {"model": "openchat", "messages": [{"role": "user", "content": "question 1"}]}
    for _ in range(6):
        reply = httpx.post(
            f"{served}/v1/chat/completions", json=ask | {"max_tokens": 4}, timeout=60
        )
        assert reply.status_code == 200, reply.text


@dataclass(frozen=True)
class Stream:
    """An answer as a client saw it: when it was asked for, and its last line."""

    asked: float
    last: str

    def is_whole(self):
        return self.last == "data: [DONE]"

    def has_error(self):
        return self.last.startswith("data: {") and "error" in json.loads(self.last[6:])


async def ask_until(end, url, streams):
    body = {"model": "openchat", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    long = {"max_tokens": 200, "logit_bias": {"300": -100}}  # 300 ends the turn
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        while time.monotonic() < end():
            asked, last = time.monotonic(), ""
            async with client.stream("POST", CHAT, json=body | long) as reply:
                async for line in reply.aiter_lines():
                    last = line or last
            streams.append(Stream(asked, last))


def test_a_lost_host_breaks_the_streams_of_its_replica_alone(cluster, served):
    with_ingress = cluster.hosts_of("Ingress")
    lost = next(host for host in cluster.hosts_of("Model") if host not in with_ingress)
    streams, crashed, end = [], 0.0, float("inf")

    async def load():
        await asyncio.gather(*(ask_until(lambda: end, served, streams) for _ in range(6)))

    with meanwhile(lambda: asyncio.run(load())):
        wait_for(lambda: sum(stream.is_whole() for stream in streams) >= 12, "answers", 120)
        crashed = time.monotonic()
        lost.crash()
        end = crashed + 30
    broken = [stream for stream in streams if not stream.is_whole()]
    assert 1 <= len(broken) <= 6
    assert all(stream.has_error() and stream.asked < crashed for stream in broken), broken
    assert sum(stream.asked > crashed for stream in streams) > 6
    lost.boot()
    wait_for(lambda: lost in cluster.hosts_of("Model"), "a replica on the host", 240)
