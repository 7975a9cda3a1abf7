"""A job that serves a model, stopped by `ray job stop`."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from ochat_ray.cluster.local_cluster import free_port

ROOT = Path(__file__).parent.parent.parent
BIN = Path(sys.executable).parent

pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]


@pytest.fixture
def ray_command():
    """Run a command against a Ray of its own, with a dashboard."""
    ports = {
        name: free_port() for name in ("port", "dashboard-port", "dashboard-agent-listen-port")
    }
    # Not tmp_path: the dashboard's sockets below it must have at most 107 characters.
    folder = tempfile.mkdtemp(prefix="r-", dir="/tmp")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {
        "RAY_AUTH_MODE": "token",
        "RAY_TMPDIR": str(folder),  # where `ray start` writes its address, which others would join
        "RAY_raylet_start_wait_time_s": "120",  # on a busy machine
        "RAY_ADDRESS": f"127.0.0.1:{ports['port']}",
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{ports['dashboard-port']}",
        "RAY_DASHBOARD_ADDRESS": f"http://127.0.0.1:{ports['dashboard-port']}",
        "PATH": f"{BIN}:{os.environ['PATH']}",
    }
    head = subprocess.Popen(
        [
            # Shells start background commands with SIGINT ignored, which the job would inherit.
            "env", "--default-signal=INT", BIN / "ray", "start", "--head", "--block",
            "--num-cpus=4", "--disable-usage-stats", "--node-ip-address=127.0.0.1",
            f"--temp-dir={folder}", *(f"--{name}={port}" for name, port in ports.items()),
        ],
        env={k: v for k, v in environment.items() if k != "RAY_ADDRESS"}, cwd=ROOT,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip

    def run(*command):
        done = subprocess.run(
            [BIN / command[0], *command[1:]], env=environment, cwd=ROOT, text=True, check=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        return done.stdout

    try:
        wait_for(lambda: run("ray", "job", "list"), "[]", until=lambda: head.poll() is not None)
        assert head.poll() is None
        yield run
    finally:
        head.terminate()
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)


def wait_for(output, text, timeout_s=180, until=lambda: False):
    end = time.monotonic() + timeout_s
    while text not in (printed := output()) and not until():
        assert time.monotonic() < end, f"no {text!r} in: {printed}"
        time.sleep(1)


def test_stopping_the_documented_job_ends_the_model(ray_command, model_directory, serve_port):
    (line,) = [
        line
        for line in (ROOT / "deploy/serving_job.yaml").read_text().splitlines()
        if line.startswith("#   ray job submit")
    ]
    options = line.removeprefix("#   ray job submit ").split()
    # Serve listens on a port of its own, since others may use 8000.
    ray_command("serve", "start", "--http-port", str(serve_port))
    ray_command(
        "ray", "job", "submit", "--submission-id=serving", *options, f"model={model_directory}",
        "engine=scripted", "num_cpus=1", "ui=false", "context_length=1024",
    )  # fmt: skip
    wait_for(lambda: ray_command("serve", "status"), "RUNNING")
    ray_command("ray", "job", "stop", "serving")
    wait_for(lambda: ray_command("serve", "status"), "applications: {}", timeout_s=30)
