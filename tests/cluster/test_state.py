"""The state of a real Ray, as its dashboard gives it."""

import os
import socket
import subprocess
import sys
import time
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


def test_only_the_group_of_a_dead_job_of_ours_and_the_copies_on_nodes_are_removed(tmp_path):
    folder = f"{os.environ['RAY_TMPDIR']}/left"
    env = os.environ | {"RAY_TMPDIR": folder}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def run(*command):
        done = subprocess.run(
            command, env=env, cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done

    start = [
        RAY, "start", "--head", "--num-cpus=2", "--port=0", f"--dashboard-port={port}",
        f"--temp-dir={folder}", "--disable-usage-stats",
    ]  # fmt: skip
    head = subprocess.Popen(
        [*start, "--block"], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        current = Path(folder, "ray_current_cluster")
        while not current.exists():
            assert head.poll() is None
            time.sleep(0.1)
        env |= {"RAY_ADDRESS": current.read_text().strip()}
        env |= {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{port}"}
        run(sys.executable, "-c", LEAVE, "ours")
        run(sys.executable, "-c", LEAVE, "theirs")
        copy, other = tmp_path / "copy", tmp_path / "other"
        for directory in (copy, other):
            directory.mkdir()
            (directory / "model.safetensors").touch()
        done = run(sys.executable, "-c", REMOVE, str(copy))
        assert (copy.exists(), other.exists()) == (False, True)
        assert done.stdout.splitlines()[-1] == "2 ['02000000']"
        assert "removed placement group" in done.stderr
        assert "(1 x {1 CPU}), which job 01000000 (" in done.stderr
    finally:
        head.terminate()
        head.wait(180)  # Ray ends its processes one by one
