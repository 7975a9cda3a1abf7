"""Start and stop a single-node Ray on loopback for the demo.

Only processes that this project started are stopped: `ray stop` would stop every Ray of the user.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import httpx
import psutil

from ochat_ray.errors import UserError

RAY_PORT, DASHBOARD_PORT, SERVE_PORT = 6379, 8265, 8000
_PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """Make this process the parent of its orphaned descendants (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def need_free_ports(ports: Iterable[int] = (RAY_PORT, DASHBOARD_PORT, SERVE_PORT)) -> None:
    """Check that nothing listens on the ports.

    Raises:
        UserError: A port is in use.
    """
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                raise UserError(
                    f"port {port} is in use, by a Ray or another server; stop it first "
                    "(make stop, ray stop)"
                ) from error


def free_port() -> int:
    """Return a loopback port on which nothing listens at the moment.

    It lies between the ports of Ray's workers and those that Linux gives to connections, any of
    which could take it before it is used.
    """
    while True:
        port = random.SystemRandom().randrange(20000, 32768)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def environment() -> dict[str, str]:
    """Return the environment of the demo's commands.

    This Python's commands come first on PATH, and token authentication is on: once
    ~/.ray/auth_token exists, Ray enables it in `ray start` but not in `ray job submit`.
    """
    kept = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "VIRTUAL_ENV")}
    return kept | {
        # Without this, `ray job submit` fails if another Ray runs on the machine.
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{DASHBOARD_PORT}",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray replaces "127.0.0.1" by the machine's address and listens there, unless this declares
        # a single-node cluster, as is always the case on macOS and Windows.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "PYTHONUNBUFFERED": "1",
    }


def make_token() -> None:
    """Create an authentication token at ~/.ray/auth_token that only the user can read."""
    subprocess.run(
        ["ray", "get-auth-token", "--generate"],
        env=environment(),
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    token = Path.home() / ".ray" / "auth_token"
    if token.exists():
        token.chmod(0o600)


def start_ray(temp_dir: Path, log: Path) -> subprocess.Popen[bytes]:
    """`ray start --head` with the dashboard, on loopback; it ends when it gets SIGTERM."""
    with log.open("wb") as output:
        return subprocess.Popen(
            [
                *("ray", "start", "--head", "--block", "--disable-usage-stats"),
                *("--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1"),
                *(f"--port={RAY_PORT}", f"--dashboard-port={DASHBOARD_PORT}"),
                # Its default, 52365, is taken where another Ray runs; no job then starts here.
                f"--dashboard-agent-listen-port={free_port()}",
                f"--temp-dir={temp_dir}",
            ],
            env=environment(),
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C reaches the demo, which then ends this in order
        )


def answers(url: str) -> bool:
    """Return whether an HTTP server at the URL can serve the requested route.

    A 404 counts as no: Ray Serve's proxy is up before it has the application's routes.
    """
    try:
        return httpx.get(url, timeout=2).status_code not in (404, *range(500, 600))
    except httpx.HTTPError:
        return False


def end_processes(roots: Iterable[psutil.Process], grace_s: float = 15) -> None:
    """Terminate processes and all their descendants; kill those left after `grace_s` seconds."""
    family = {p for root in roots for p in _process_tree(root)}
    for process in family:
        _signal(process, signal.SIGTERM)
    _, alive = psutil.wait_procs(family, timeout=grace_s)
    # Some of them start new processes while they shut down.
    alive = [*alive, *(p for process in family for p in _process_tree(process))]
    for process in alive:
        _signal(process, signal.SIGKILL)
    psutil.wait_procs(alive, timeout=grace_s)


def _process_tree(root: psutil.Process) -> list[psutil.Process]:
    try:
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _signal(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return
