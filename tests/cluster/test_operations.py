"""docs/operations.md's lines from nothing to an answer, run as they stand there.

They leave replicas on two hosts. The loss of one costs the streams that it carried.
"""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import textwrap
import time
from contextlib import suppress
from dataclasses import dataclass

import httpx
import pytest

from ochat_ray.cluster.local_cluster import need_free_ports
from tests.cluster.conftest import wait_for
from tests.cluster.hosts import ROOT
from tests.cluster.jobs import meanwhile

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]

URL = "http://127.0.0.1:8000"
CHAT = "/v1/chat/completions"

BY_THE_FIXTURE = ("# ", "git clone ", "$EDITOR ", "ray up ", "ray down ")
"""How the lines begin that `cluster` has done, or will do."""


def documented_lines():
    text = (ROOT / "docs/operations.md").read_text()
    block = re.search(r"\nFrom nothing to an answer.*\n\n((?:    .*\n)+)", text)[1]
    return textwrap.dedent(block).splitlines()


@pytest.fixture(scope="module")
def assets(cluster, model_directory):
    """Small files in the client's cache, in place of what `ochat_ray.demo.assets` fetches."""
    folder = cluster.hosts.folder / "home/.cache/ochat_ray"
    folder.mkdir(parents=True)
    shutil.copytree(model_directory, folder / "smollm2-135m-instruct")
    turns = [
        {
            "id": str(n),
            "conversations": [
                {"from": "human", "value": f"What is {n}?"},
                {"from": "gpt", "value": f"A number: {n}"},
            ],
        }
        for n in range(2000)
    ]
    (folder / "sharegpt_v3_first_125509632_bytes.json").write_text(json.dumps(turns))


@pytest.fixture(scope="module")
def walk(cluster, assets):
    """Exit status and output of the lines; what they started in the background is still there."""
    need_free_ports((8265, 8000))
    shared = cluster.hosts.disk / "shared"
    shared.mkdir()
    lines = [line for line in documented_lines() if not line.startswith(BY_THE_FIXTURE)]
    script = "\n".join(lines).replace("HEAD:", f"{cluster.head.address}:")
    environment = cluster.environment | {"RSYNC_RSH": cluster.hosts.ssh}
    del environment["RAY_API_SERVER_ADDRESS"], environment["RAY_UP_enable_autoscaler_v2"]
    with tempfile.TemporaryFile("w+") as printed:
        walk = subprocess.Popen(
            ["bash", "-e", "-c", script.replace("/shared", str(shared))],
            cwd=cluster.repository,
            env=environment,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=subprocess.STDOUT,
        )
        try:
            status = walk.wait(800)
            printed.seek(0)
            yield status, printed.read()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(walk.pid, signal.SIGTERM)  # what goes on in the background
            cluster.submit("serve", "shutdown", "--yes")


def test_the_lines_of_the_docs_lead_to_an_answer(walk):
    status, printed = walk
    assert status == 0, printed
    answer = printed.splitlines()[-1]
    assert answer.startswith('{"id":"chatcmpl-'), printed
    assert json.loads(answer)["usage"]["completion_tokens"] > 0


def two_replicas_are_ready(cluster):
    """Return True if two replicas on different hosts have loaded the model."""
    text = httpx.get(f"{URL}/metrics", timeout=30).text
    loaded = re.findall(r"^ochat_ray_running_requests\{", text, re.MULTILINE)
    return len(loaded) == len(cluster.hosts_of("Model")) == 2


def test_replicas_on_two_hosts_answer(cluster, walk):
    wait_for(lambda: two_replicas_are_ready(cluster), "replicas on two hosts", 240)
    trained = json.loads((cluster.hosts.disk / "shared/runs/demo/model/ochat.json").read_text())
    model = httpx.get(f"{URL}/v1/models").json()["data"][0]
    assert model["training"]["data_digest"] == trained["data_digest"]
    ask = {"model": "demo", "messages": [{"role": "user", "content": "question 1"}]}
    for _ in range(6):
        reply = httpx.post(URL + CHAT, json=ask | {"max_tokens": 4}, timeout=60)
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


async def ask_until(end, streams):
    body = {"model": "demo", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    long = {"max_tokens": 200, "logit_bias": {"300": -100}}  # 300 ends the turn
    async with httpx.AsyncClient(base_url=URL, timeout=120) as client:
        while time.monotonic() < end():
            asked, last = time.monotonic(), ""
            async with client.stream("POST", CHAT, json=body | long) as reply:
                async for line in reply.aiter_lines():
                    last = line or last
            streams.append(Stream(asked, last))


def test_a_lost_host_breaks_the_streams_of_its_replica_alone(cluster, walk):
    wait_for(lambda: two_replicas_are_ready(cluster), "replicas on two hosts", 240)
    with_ingress = cluster.hosts_of("Ingress")
    lost = next(host for host in cluster.hosts_of("Model") if host not in with_ingress)
    streams, crashed, end = [], 0.0, float("inf")

    async def load():
        await asyncio.gather(*(ask_until(lambda: end, streams) for _ in range(6)))

    with meanwhile(lambda: asyncio.run(load())):
        wait_for(lambda: sum(stream.is_whole() for stream in streams) >= 12, "answers", 240)
        crashed = time.monotonic()
        lost.crash()
        end = crashed + 30
    lost.boot()
    broken = [stream for stream in streams if not stream.is_whole()]
    assert 1 <= len(broken) <= 6
    assert all(stream.has_error() and stream.asked < crashed for stream in broken), broken
    assert sum(stream.asked > crashed for stream in streams) > 6
    wait_for(lambda: two_replicas_are_ready(cluster), "a replica on the host again", 400)
