"""The head lost where the GCS keeps its state in Redis: Serve's replicas outlive it.

A key that is revoked meanwhile stays revoked.
"""

import json
import shutil
import subprocess

import pytest

from tests.cluster.conftest import copy_repository, exports_for, wait_for
from tests.cluster.hosts import CLIENT, VENV
from tests.cluster.jobs import BASE

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]

PORT, PASSWORD = 6399, "of-this-test"
KEYS = {"who stays": "sk-of-who-stays-0123456789", "who left": "sk-of-who-left-0123456789"}
ASK = {"model": "base", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}


@pytest.fixture
def redis(hosts):
    """The address of a Redis beside the hosts."""
    if not (program := shutil.which("redis-server")):
        pytest.skip("redis-server is not installed")
    process = subprocess.Popen(
        [program, "--bind", CLIENT, "--port", str(PORT), "--requirepass", PASSWORD, "--save", ""],
        stdout=subprocess.DEVNULL,
        cwd=hosts.folder,
    )
    yield f"{CLIENT}:{PORT}"
    process.terminate()
    process.wait(20)


@pytest.fixture
def run_on(hosts, store):
    """Runs a command of the project on a host, as if somebody had installed it there."""
    repository = hosts.folder / "without-ray-up"
    copy_repository(repository)
    (hosts.folder / "bashrc").write_text(
        f"export PYTHONPATH={repository} PATH={VENV}/bin:$PATH RAY_AUTH_MODE=token\n"
        "mkdir -p ~/.ray && echo 0123456789abcdef0123456789abcdef > ~/.ray/auth_token\n"
        "chmod 600 ~/.ray/auth_token\n" + exports_for(store)
    )

    def run(host, command):
        # What stays behind must not hold this side's pipe.
        line = f". ~/.bashrc && cd {repository} && {{ {command}; }} > /tmp/log 2>&1 < /dev/null"
        host.inside(f"{line} || {{ cat /tmp/log >&2; exit 1; }}")

    return run


def test_replicas_of_a_model_in_the_store_outlive_the_head(hosts, redis, run_on):
    head, worker = hosts.add(2)
    start_head = (
        f"RAY_REDIS_ADDRESS={redis} ray start --head --port=6379 --num-cpus=0 "
        f"--redis-password={PASSWORD}"
    )
    run_on(head, start_head)
    run_on(worker, f"ray start --address={head.address}:6379 --num-cpus=1")
    for host in (head, worker):
        write_keys(host, *KEYS)
    run_on(
        head, f"serve run --non-blocking ochat_ray.serve:app model={BASE} ui=false keys=$HOME/keys"
    )

    def answer(who):
        done = head.inside(
            "curl -s -o /tmp/answer -w '%{http_code}' --max-time 10 -d @- "
            f"-H 'Content-Type: application/json' -H 'Authorization: Bearer {KEYS[who]}' "
            "http://127.0.0.1:8000/v1/chat/completions || true",
            input=json.dumps(ASK),
        )
        return done.stdout

    def replica():
        return worker.inside("pgrep -f ^ray::ServeReplica:default:Model || true").stdout

    wait_for(lambda: answer("who stays") == "200", "an answer", 240)
    assert answer("who left") == "200"
    before = replica()
    head.crash()
    write_keys(worker, "who stays")
    head.boot()
    assert answer("who stays") == "000"  # no connection
    write_keys(head, "who stays")
    run_on(head, start_head)
    wait_for(lambda: answer("who stays") == "200", "an answer of the new head", 240)
    assert answer("who left") == "401"
    assert replica() == before != ""


def write_keys(host, *names):
    lines = "".join(f"{name.split()[-1]}:{KEYS[name]}\n" for name in names)
    host.inside("umask 077 && cat > ~/keys", input=lines)
