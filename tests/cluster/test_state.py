"""The state of a real Ray, as its dashboard gives it."""

import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).with_name("ray")

pytestmark = [pytest.mark.ray, pytest.mark.slow]

LEAVE = """
import ray, sys, time
from ray.job_config import JobConfig
label = {"ochat_ray": "true"} if sys.argv[1] == "ours" else {}
ray.init(job_config=JobConfig(metadata=label), namespace="test", log_to_driver=False)

@ray.remote(num_cpus=0, lifetime="detached", name=sys.argv[1])
class Creator:  # outlives its job, as the group does
    def create(self):
        self.group = ray.util.placement_group([{"CPU": 1}])
        ray.get(self.group.ready())

ray.get(Creator.remote().create.remote())
"""

REMOVE = """
import sys
from ochat_ray.cluster import ray_session, state
ray_session.join_or_start()
before = {group.id for group in state.read_cluster().groups}
state.remove_leftovers()
after = [group.job_id for group in state.read_cluster().groups]
state.remove_on_all_nodes(sys.argv[1])
print(len(before), after)
"""

SERVE = """
import asyncio, threading, time
import httpx
from ray import serve
from ochat_ray.cluster.state import read_cluster
from ochat_ray.cluster.local_cluster import free_port
from ochat_ray.status.overview import status_of

@serve.deployment(
    max_ongoing_requests=2, max_queued_requests=8, ray_actor_options={"num_cpus": 0}
)
class Slow:
    async def __call__(self):
        await asyncio.sleep(300)

@serve.deployment(ray_actor_options={"num_cpus": 0})
class Front:
    def __init__(self, slow):
        self.slow = slow

    async def __call__(self, request):
        return await self.slow.remote()

port = free_port()
serve.start(http_options={"host": "127.0.0.1", "port": port})
serve.run(Front.bind(Slow.bind()), name="a")
url = f"http://127.0.0.1:{port}/"
def ask():
    while httpx.get(url, timeout=300).status_code == 404:  # the proxy does not have the route yet
        time.sleep(0.1)

for _ in range(5):
    threading.Thread(target=ask, daemon=True).start()
end, text = time.monotonic() + 60, ""
while time.monotonic() < end and text != "2 of 2 running, 3 of 8 waiting":
    time.sleep(1)
    status = status_of(read_cluster(), [], {}, now=time.time(), since_s=1.0)
    counts = status.applications[0]["deployments"]["Slow"]["requests"]
    text = "{running} of {max_running} running, {waiting} of {max_waiting} waiting".format(**counts)
print(text, flush=True)
import os; os._exit(0)  # the requests have no answers
"""


@contextmanager
def head():
    """Start a head of its own, and yield a function that runs a Python program as its client."""
    folder = f"{os.environ['RAY_TMPDIR']}/left"
    env = os.environ | {"RAY_TMPDIR": folder}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    start = [
        RAY, "start", "--head", "--num-cpus=2", "--port=0", f"--dashboard-port={port}",
        f"--temp-dir={folder}", "--disable-usage-stats",
    ]  # fmt: skip
    process = subprocess.Popen(
        [*start, "--block"], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )

    def run(program, *arguments):
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            env=env,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done

    try:
        current = Path(folder, "ray_current_cluster")
        while not current.exists():
            assert process.poll() is None
            time.sleep(0.1)
        env |= {"RAY_ADDRESS": current.read_text().strip()}
        env |= {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{port}"}
        yield run
    finally:
        process.terminate()
        process.wait(180)  # Ray ends its processes one by one


def test_leftovers_of_our_dead_jobs_alone_are_removed_and_requests_are_counted(tmp_path):
    copy, other = tmp_path / "copy", tmp_path / "other"
    for directory in (copy, other):
        directory.mkdir()
        (directory / "model.safetensors").touch()
    with head() as run:
        run(LEAVE, "ours")
        run(LEAVE, "theirs")
        done = run(REMOVE, str(copy))
        assert (copy.exists(), other.exists()) == (False, True)
        assert done.stdout.splitlines()[-1] == "2 ['02000000']"
        assert "removed placement group" in done.stderr
        assert "(1 x {1 CPU}), which job 01000000 (" in done.stderr
        # In one test, since starting a head takes longer than all of this.
        assert run(SERVE).stdout.splitlines()[-1] == "2 of 2 running, 3 of 8 waiting"
