"""The demo's processes and ports."""

import socket
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from ochat_ray.cluster import local_cluster
from ochat_ray.errors import UserError


def test_a_port_in_use_is_one_clear_line():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} is in use"):
            local_cluster.need_free_ports([port])
    local_cluster.need_free_ports([port])


def test_a_free_port_is_none_that_a_connection_gets():
    ports = {local_cluster.free_port() for _ in range(200)}
    assert len(ports) > 150
    assert min(ports) >= 20000
    assert max(ports) < 32768  # the first of Linux's ip_local_port_range


def test_a_process_ends_with_its_children_even_if_they_will_not():
    stubborn = (
        "import signal, subprocess, sys, time;"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "print('up', flush=True); time.sleep(60)"
    )
    parent = (
        f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {stubborn!r}]);"
        "p.wait()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "up\n"
        root = psutil.Process(process.pid)
        family = [root, *root.children(recursive=True)]
        assert len(family) == 2
        local_cluster.end_processes([root], grace_s=1)
    assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in family)


def test_commands_use_the_token_this_environment_and_this_ray(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere")
    environment = local_cluster.environment()
    assert environment["RAY_API_SERVER_ADDRESS"] == "http://127.0.0.1:8265"
    assert environment["RAY_AUTH_MODE"] == "token"
    assert "RAY_ADDRESS" not in environment
    assert environment["PATH"].startswith(f"{Path(sys.executable).parent}:")


@pytest.mark.parametrize(
    ("status", "ready"), [(200, True), (401, True), (404, False), (503, False)]
)
def test_a_server_without_the_route_does_not_answer_yet(monkeypatch, status, ready):
    monkeypatch.setattr(httpx, "get", lambda url, timeout: httpx.Response(status))
    assert local_cluster.answers("http://127.0.0.1/health") == ready
