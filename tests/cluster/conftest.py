"""A cluster of three hosts that `ray up cluster.yaml` made, and how a client uses it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from ochat_ray.cluster.local_cluster import free_port
from tests.cluster.hosts import CLIENT, ROOT, Host, Hosts, why_not
from tests.cluster.jobs import OUTPUT, meanwhile, preparation, result_of, training
from tests.pages import share_page

BIN = Path(sys.prefix) / "bin"
AUTOSCALER_LOGS = "~/.ray/ray/session_latest/logs/monitor.*"
PAGES, FILES, FILE_RECORDS = 120, 16, 100


class CommandError(Exception):
    """A command ended in failure; its text is what the command printed."""


class Cluster:
    """The hosts, the definition they were made by, and a folder that is a copy of the repository.

    In the definition `provider` and `auth` are replaced, and the node types left out, which Ray's
    provider `local` does not have: docs/operations.md.
    """

    def __init__(
        self, hosts: Hosts, store: Any, repository: Path, environment: dict[str, str]
    ) -> None:
        self.hosts, self.repository, self.environment = hosts, repository, environment
        self.store = store
        self.members = hosts.add(3)
        self.head, *self.workers = self.members
        self.jobs_url = environment["RAY_API_SERVER_ADDRESS"]
        self._dashboard = ExitStack()
        definition = yaml.safe_load((ROOT / "cluster.yaml").read_text())
        del definition["available_node_types"], definition["head_node_type"]
        definition["provider"] = {
            "type": "local",
            "head_ip": self.head.address,
            "worker_ips": [worker.address for worker in self.workers],
        }
        definition["auth"] = {"ssh_user": "root", "ssh_private_key": str(hosts.key)}
        # The sizes: a head without work of its own, as on AWS, room for one task on a worker, and
        # the smallest object stores that Ray takes.
        small = " --object-store-memory=80000000"
        definition["head_start_ray_commands"][-1] += f" --num-cpus=0{small}"
        definition["worker_start_ray_commands"][-1] += f" --num-cpus=1{small}"
        (repository / "cluster.yaml").write_text(yaml.safe_dump(definition))

    def run(self, *command: str, timeout: float = 300) -> str:
        """Run a command of this environment's on the client's side; what it printed."""
        done = subprocess.run(
            [BIN / command[0], *command[1:]], cwd=self.repository, env=self.environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout,
            stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise CommandError(f"{' '.join(command)}: {done.returncode}\n{done.stdout}")
        return done.stdout

    def up(self) -> None:
        """`ray up`, and `ray dashboard` to the new head; until all hosts are there."""
        self.hang_up()
        self.run("ray", "up", "--yes", "--no-config-cache", "cluster.yaml", timeout=400)
        port = int(self.jobs_url.rpartition(":")[2])
        self._dashboard.enter_context(self.forwarded(port, 8265))
        wait_for(lambda: answers(self.jobs_url), "the dashboard")
        self.wait_for_hosts(3)

    def hang_up(self) -> None:
        """End `ray dashboard`."""
        self._dashboard.close()

    def fail(self, *command: str) -> str:
        """What a command printed that ends in failure."""
        with pytest.raises(CommandError) as failure:
            self.run(*command)
        return str(failure.value)

    @contextmanager
    def without_code(self) -> Iterator[None]:
        """Hosts that do not have this repository."""
        for host in self.members:
            host.inside("cd ~/ochat_ray && mkdir hidden && mv jobs ochat_ray hidden")
        try:
            yield
        finally:
            for host in self.members:
                host.inside("cd ~/ochat_ray && mv hidden/* . && rmdir hidden")

    def submit(self, *command: str, timeout: float = 600) -> str:
        """`ray job submit`; what the job printed."""
        return self.run("ray", "job", "submit", "--", *command, timeout=timeout)

    @contextmanager
    def forwarded(self, port: int, there: int) -> Iterator[None]:
        """A port of the head's loopback on this side's, as `ray dashboard` does it."""
        tunnel = ["-o", "ExitOnForwardFailure=yes", "-N", "-L", f"{port}:127.0.0.1:{there}"]
        process = subprocess.Popen([*self.hosts.ssh.split(), *tunnel, self.head.address])
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

    def wait_for_hosts(self, count: int) -> None:
        """Until so many are alive: Ray's loss of one, or the autoscaler's start of Ray on one."""
        try:
            wait_for(lambda: len(self.alive("nodes")) == count, f"{count} hosts", 400)
        except TimeoutError as error:
            error.add_note(self.head.inside(f"tail -n 50 {AUTOSCALER_LOGS} || true").stdout)
            raise

    def hosts_of(self, deployment: str) -> list[Host]:
        """The host of each of its replicas."""
        addresses = {node["node_id"]: node["node_ip"] for node in self.alive("nodes")}
        found = [
            addresses.get(actor["node_id"])
            for actor in self.alive("actors")
            if actor["class_name"].endswith(f":{deployment}")
        ]
        return [host for host in self.members if host.address in found]

    def objects(self, prefix: str) -> list[str]:
        """The keys in the store below a prefix."""
        found = self.store.list_objects_v2(Bucket="bucket", Prefix=prefix)
        return [entry["Key"] for entry in found.get("Contents", [])]

    def read(self, key: str) -> str:
        """The text of an object in the store."""
        return self.store.get_object(Bucket="bucket", Key=key)["Body"].read().decode()


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


def answers(url: str) -> bool:
    """Return True if a server answers there, with a refusal or without."""
    try:
        return bool(httpx.get(url).status_code)
    except httpx.TransportError:
        return False


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="session")
def hosts():
    """The bridge that hosts will be on, and their folder; no host yet."""
    if reason := why_not():
        pytest.skip(reason)
    hosts = Hosts()
    yield hosts
    hosts.close()


@pytest.fixture(scope="session")
def store(hosts, model_directory):
    """A client of a store of S3's protocol that hosts reach too; "bucket" has a base model."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(CLIENT, 0)
    server.start()
    address, port = server.get_host_and_port()
    client = boto3.client(
        "s3",
        endpoint_url=f"http://{address}:{port}",
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    client.create_bucket(Bucket="bucket")
    for file in model_directory.iterdir():
        client.put_object(Bucket="bucket", Key=f"base/{file.name}", Body=file.read_bytes())
    yield client
    server.stop()


def exports_for(store: Any) -> str:
    """Lines of a host's ~/.bashrc: the store's address, and time for Ray to start."""
    return (
        "export RAY_raylet_start_wait_time_s=120\n"
        "export AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test AWS_DEFAULT_REGION=us-east-1\n"
        f"export AWS_EC2_METADATA_DISABLED=true AWS_ENDPOINT_URL={store.meta.endpoint_url}\n"
    )


COMPILE = (
    ". ~/.bashrc && DS_ACCELERATOR=cpu python -c "
    "'from ochat_ray.train.shared_memory_op import load_shared_memory_op as l; l()'"
)
"""DeepSpeed's operator for CPUs: trainings that come before it is there wait for it."""


@pytest.fixture(scope="session")
def cluster(hosts, store):
    """A head and two workers, made by `ray up` over SSH."""
    repository, home = hosts.folder / "repository", hosts.folder / "home"
    copy_repository(repository)
    (home / ".ray").mkdir(parents=True)
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
        "HOME": str(home),
        "RAY_AUTH_MODE": "token",
        "RAY_UP_enable_autoscaler_v2": "0",
        "RAY_TMPDIR": str(home),  # `ray up` keeps the state of a cluster of this name there
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{free_port()}",
        "PATH": f"{BIN}:{os.environ['PATH']}",
    }
    (hosts.folder / "bashrc").write_text(
        # A host that is lost is declared dead after a dozen seconds, and Ray started on it again
        # ten seconds later; usually each takes longer. So does it for a host without its head.
        "export RAY_health_check_period_ms=1000 RAY_health_check_timeout_ms=3000\n"
        "export RAY_health_check_failure_threshold=3\n"
        "export AUTOSCALER_HEARTBEAT_TIMEOUT_S=10 AUTOSCALER_UPDATE_INTERVAL_S=1\n"
        "export RAY_gcs_rpc_server_reconnect_timeout_s=10\n"
        # What is left of Ray on a worker waits so long for an answer of a head that is gone.
        "export RAY_gcs_server_request_timeout_seconds=20\n" + exports_for(store)
    )
    made = Cluster(hosts, store, repository, environment)
    made.run("ray", "get-auth-token", "--generate")
    try:
        made.up()
        made.workers[0].inside(f"({COMPILE}) > /tmp/compile.log 2>&1 < /dev/null &")
        yield made
    finally:
        made.hang_up()
    if os.environ.get("PYTEST_XDIST_WORKER", "gw0") == "gw0":  # once is enough
        _take_down(made)


def _take_down(made: Cluster) -> None:
    """`ray down`, after which nothing of Ray is left on the hosts."""
    made.run("ray", "down", "--yes", "cluster.yaml")
    # The head at once; a worker's Ray ends itself when it has not seen the head for a while.
    # Its log monitor holds nothing, and ends minutes later, when its own calls to the head do.
    for host in made.members:
        with suppress(TimeoutError):
            wait_for(lambda host=host: not left_of_ray(host), "the end of Ray", 240)
        assert left_of_ray(host) == []


def left_of_ray(host: Host) -> list[str]:
    return [line for line in host.rays() if "log_monitor" not in line]


@pytest.fixture(scope="session")
def conversations(store):
    """Put share pages and files of records into the store; return their number."""
    turns = [
        [
            {"from": "human", "value": f"question {n}"},
            {"from": "gpt", "value": f"<p>answer {n}</p>"},
        ]
        for n in range(PAGES + FILES * FILE_RECORDS)
    ]
    for number, items in enumerate(turns[:PAGES]):
        page = share_page(items, id=f"p{number}", model="Model: GPT-4")
        store.put_object(Bucket="bucket", Key=f"input/{number}.html", Body=page)
    for number in range(FILES):
        start = PAGES + number * FILE_RECORDS
        lines = "".join(
            json.dumps({"id": f"r{start + n}", "model": "GPT-4", "conversations": items}) + "\n"
            for n, items in enumerate(turns[start : start + FILE_RECORDS])
        )
        store.put_object(Bucket="bucket", Key=f"input/{number}.jsonl", Body=lines.encode())
    return len(turns)


@pytest.fixture(scope="session")
def prepared(cluster, conversations):
    """The manifest of an undisturbed run over them, whose code travels to hosts without it."""
    code = ("--runtime-env", "runtime_env.yaml", "--working-dir", ".")
    with cluster.without_code():
        return result_of(
            cluster.run("ray", "job", "submit", *code, "--", *preparation(f"{OUTPUT}/data"))
        )


STEPS = 40
LONG = ("--max-steps", str(STEPS), "--epochs", "10", "--checkpoint-every", "14")
"""The options of a training that lasts long enough to lose hosts in it."""


@pytest.fixture(scope="session")
def printed_by_training(cluster, prepared):
    """What an undisturbed training printed, whose link is slow until its steps begin."""
    slow = cluster.workers[0]

    def speed_up():
        wait_for(lambda: cluster.objects("runs/model/metrics.jsonl"), "a step", 400)
        slow.speed_up()

    slow.slow_down()
    with meanwhile(speed_up):
        return cluster.submit(*training("model", *LONG))


@pytest.fixture(scope="session")
def trained(printed_by_training):
    """The manifest of that model."""
    return result_of(printed_by_training)


def copy_repository(target: Path) -> None:
    """What git has of it, as it is now."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
