"""The command `jobs/status.py`: its exit status and output, for a cluster that is made here."""

import json
import os
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from ochat_ray.cluster import state
from ochat_ray.cluster.view import Cluster, Job
from ochat_ray.errors import UserError
from ochat_ray.jobs import status


@pytest.fixture
def cluster(monkeypatch):
    """Set the cluster that answers."""

    def answers(**parts):
        monkeypatch.setattr("ochat_ray.cluster.state.read_cluster", lambda _: Cluster(**parts))

    return answers


def test_the_status_is_0_if_all_is_well(cluster, capsys):
    cluster()
    assert status.main([]) == 0
    assert capsys.readouterr().out == "all well\n"


def test_the_status_is_1_if_something_failed_and_json_is_the_last_line(cluster, capsys):
    cluster(jobs=[Job(id="1", status="FAILED", entrypoint="python x.py", message="no reason")])
    assert status.main(["--json"]) == 1
    text, line = capsys.readouterr().out.strip().rsplit("\n", 1)
    assert text.endswith("PROBLEM job 1 failed: no reason (python x.py)")
    assert json.loads(line)["problems"] == ["job 1 failed: no reason (python x.py)"]


def test_with_idle_for_the_status_is_0_only_after_that_time(cluster):
    ended = time.time() - 2 * 3600
    cluster(jobs=[Job(id="1", status="FAILED", entrypoint="python x.py", ended=ended)])
    assert status.main(["--idle-for", "1"]) == 0
    assert status.main(["--idle-for", "3"]) == 1
    cluster(jobs=[Job(id="1", status="RUNNING", entrypoint="python x.py")])
    assert status.main(["--idle-for", "1"]) == 1


def test_given_directories_are_reported(cluster, capsys, tmp_path):
    cluster()
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "total_steps": 2, "loss": 3.0}\n')
    assert status.main(["--output", str(tmp_path)]) == 1
    assert f"run     train {tmp_path} failed: step 1 of 2" in capsys.readouterr().out


def test_the_status_is_2_without_a_cluster(capsys):
    assert status.main(["--address", "http://127.0.0.1:1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no Ray cluster answers (Failed to connect to Ray at address" in line
    assert "--address http://127.0.0.1:8265" in line


def test_a_wrong_token_is_no_missing_cluster(monkeypatch, capsys):
    def refuses(*_, **__):
        raise RuntimeError("Authentication failed: Forbidden: Invalid authentication token\nmore")

    monkeypatch.setattr("ochat_ray.cluster.state.JobSubmissionClient", refuses)
    assert status.main([]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "the Ray cluster refuses access (Authentication failed: Forbidden: " in line


def test_a_missing_token_is_one_line(tmp_path):
    """Of a user without a home, such as that of a service."""
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "RAY_AUTH_MODE": "token"}
    done = subprocess.run(
        [sys.executable, "-m", "ochat_ray", "status"],
        env=env | {"RAY_ADDRESS": "127.0.0.1:1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "the Ray cluster refuses access (Token authentication is enabled but " in line


class Client:
    """A dashboard where Ray Serve's state has this response."""

    def __init__(self, code, text):
        self.response = SimpleNamespace(status_code=code, text=text, json=dict)

    def _do_request(self, *_):
        return self.response


def test_a_state_of_serve_that_cannot_be_read_is_no_idle_cluster():
    """A script would power the head off."""
    with pytest.raises(UserError, match=r"cannot be read \(503: the GCS may be down\)"):
        state._serve_state(Client(503, "the GCS\n may be down"))
    assert state._serve_state(Client(501, "Serve dependencies are not installed")) == {}


def test_a_cluster_that_does_not_answer_is_given_up(monkeypatch, capsys):
    never = threading.Event()
    monkeypatch.setattr("ochat_ray.cluster.state.read_cluster", lambda _: never.wait(60))
    monkeypatch.setattr(status, "TIMEOUT_S", 1.0)
    assert status.main([]) == 2
    assert capsys.readouterr().err.endswith("the Ray cluster did not answer within 1 s\n")
    never.set()


def test_the_given_address_is_used_whatever_the_environment_names(monkeypatch, capsys):
    """Ray's own clients would use the environment's."""
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:2")
    assert status.main(["--address", "http://127.0.0.1:1"]) == 2
    assert "at address: http://127.0.0.1:1." in capsys.readouterr().err
    assert os.environ["RAY_API_SERVER_ADDRESS"] == "http://127.0.0.1:2"


def test_the_status_is_2_for_wrong_options(cluster, capsys):
    cluster()
    assert status.main(["--price", "train"]) == 2
    assert "--price train is not TYPE=PRICE" in capsys.readouterr().err
    assert status.main(["--address", "127.0.0.1:6379"]) == 2
    assert "--address 127.0.0.1:6379 is not a URL" in capsys.readouterr().err
