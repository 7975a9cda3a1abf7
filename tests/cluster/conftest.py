"""A cluster of three hosts that `ray up cluster.yaml` made, and how a client uses it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import yaml

from tests.cluster.hosts import CLIENT, ROOT, Hosts, why_not

BIN = Path(sys.prefix) / "bin"


class Cluster:
    """The hosts, the definition they were made by, and a folder that is a copy of the repository.

    In the definition `provider` and `auth` are replaced, and the node types left out, which Ray's
    provider `local` does not have: docs/operations.md.
    """

    def __init__(self, hosts: Hosts, repository: Path, environment: dict[str, str]) -> None:
        self.hosts, self.repository, self.environment = hosts, repository, environment
        self.head, *self.workers = hosts.all
        self.jobs_url = environment["RAY_API_SERVER_ADDRESS"]
        definition = yaml.safe_load((ROOT / "cluster.yaml").read_text())
        del definition["available_node_types"], definition["head_node_type"]
        definition["provider"] = {
            "type": "local",
            "head_ip": self.head.address,
            "worker_ips": [worker.address for worker in self.workers],
        }
        definition["auth"] = {"ssh_user": "root", "ssh_private_key": str(hosts.key)}
        # The sizes: a head without work of its own, as on AWS, and room for one task on a worker.
        definition["head_start_ray_commands"][-1] += " --num-cpus=0"
        definition["worker_start_ray_commands"][-1] += " --num-cpus=1"
        (repository / "cluster.yaml").write_text(yaml.safe_dump(definition))

    def run(self, *command: str, timeout: float = 300) -> str:
        """Run a command of this environment's on the client's side; what it printed."""
        done = subprocess.run(
            [BIN / command[0], *command[1:]], cwd=self.repository, env=self.environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout,
            stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{' '.join(command)}: {done.returncode}\n{done.stdout}"
        return done.stdout

    def submit(self, *command: str, timeout: float = 600) -> str:
        """`ray job submit`; what the job printed."""
        return self.run("ray", "job", "submit", "--", *command, timeout=timeout)

    @contextmanager
    def forwarded(self, port: int, there: int) -> Iterator[None]:
        """A port of the head's loopback on this side's, as `ray dashboard` does it."""
        process = subprocess.Popen(
            ["ssh", "-i", str(self.hosts.key), "-o", "StrictHostKeyChecking=no",
             "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR",
             "-o", "ExitOnForwardFailure=yes", "-N", "-L", f"{port}:127.0.0.1:{there}",
             f"root@{self.head.address}"]
        )  # fmt: skip
        try:
            wait_for(lambda: _listens(port), "the tunnel")
            yield
        finally:
            process.terminate()
            process.wait(20)

    def token(self) -> str:
        """What the cluster lets in."""
        return (Path(self.environment["HOME"]) / ".ray/auth_token").read_text().strip()

    def alive(self, what: str) -> list[dict]:
        """Ray's "nodes" or "actors" that are alive."""
        headers = {"Authorization": f"Bearer {self.token()}"}
        url = f"{self.jobs_url}/api/v0/{what}?detail=1"
        found = httpx.get(url, headers=headers, timeout=30).raise_for_status().json()
        return [row for row in found["data"]["result"]["result"] if row["state"] == "ALIVE"]

    def objects(self, prefix: str) -> list[str]:
        """The keys in the store below a prefix."""
        found = self.s3.list_objects_v2(Bucket="bucket", Prefix=prefix)
        return [entry["Key"] for entry in found.get("Contents", [])]

    def read(self, key: str) -> str:
        """The text of an object in the store."""
        return self.s3.get_object(Bucket="bucket", Key=key)["Body"].read().decode()


def wait_for(condition, what: str, seconds: float = 60) -> None:
    """Until it holds.

    Raises:
        TimeoutError: it does not.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not after {seconds} s")
        time.sleep(0.2)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    """A port of loopback that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def store():
    """A server of S3's protocol that hosts reach, with an empty "bucket"; its environment."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(CLIENT, 0)
    environment = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }

    def start():
        server.start()
        host, port = server.get_host_and_port()
        environment["AWS_ENDPOINT_URL"] = f"http://{host}:{port}"
        client = boto3.client(
            "s3", endpoint_url=environment["AWS_ENDPOINT_URL"], region_name="us-east-1",
            aws_access_key_id="test", aws_secret_access_key="test",
        )  # fmt: skip
        client.create_bucket(Bucket="bucket")
        return client

    yield start, environment
    server.stop()


@pytest.fixture(scope="session")
def cluster(store, model_directory):
    """A head and two workers, made by `ray up` over SSH."""
    if reason := why_not():
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="ochat-hosts-", dir="/var/tmp"))
    repository = folder / "repository"
    _copy_repository(repository)
    shutil.copytree(model_directory, repository / "tiny")
    start_store, s3 = store
    home = folder / "home"
    (home / ".ray").mkdir(parents=True)
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
        "HOME": str(home), "RAY_AUTH_MODE": "token",
        "RAY_UP_enable_autoscaler_v2": "0",
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{free_port()}",
        "PATH": f"{BIN}:{os.environ['PATH']}",
    }  # fmt: skip
    # Before the hosts, which read it as they start; the store's port is known after the bridge is.
    hosts = Hosts(folder)
    try:
        client = start_store()
        exports = "".join(f"export {name}={value}\n" for name, value in s3.items())
        (folder / "bashrc").write_text(exports)
        hosts.add(3)
        made = Cluster(hosts, repository, environment)
        made.s3 = client
        made.run("ray", "get-auth-token", "--generate")
        made.run("ray", "up", "--yes", "--no-config-cache", "cluster.yaml", timeout=400)
        with made.forwarded(int(made.jobs_url.rpartition(":")[2]), 8265):
            wait_for(lambda: len(made.alive("nodes")) == 3, "three nodes", 120)
            yield made
        made.run("ray", "down", "--yes", "cluster.yaml")
        # The head at once; a worker's Ray ends itself when it has not seen the head for a minute.
        for host in hosts.all:
            wait_for(lambda host=host: not host.rays(), f"the end of Ray on {host.address}", 120)
    finally:
        hosts.close()
        shutil.rmtree(folder, ignore_errors=True)


def _copy_repository(target: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
