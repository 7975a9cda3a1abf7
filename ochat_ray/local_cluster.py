"""A Ray of one machine for the demo: started on loopback, ended without a trace.

Only the ends that this project starts are ended: `ray stop` would end every Ray of the user.
"""

from __future__ import annotations

import ctypes
import os
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
    """Make this process the parent of whatever its descendants leave behind (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def need_free_ports(ports: Iterable[int] = (RAY_PORT, DASHBOARD_PORT, SERVE_PORT)) -> None:
    """Check that nothing listens on the ports.

    Raises:
        UserError: something does.
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
    """Return a port of loopback on which nothing listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment() -> dict[str, str]:
    """The environment of every command of the demo.

    This Python's commands come first, and token authentication is on: Ray would turn it on by
    itself in `ray start` but not in `ray job submit`, once ~/.ray/auth_token exists.
    """
    kept = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "VIRTUAL_ENV")}
    return kept | {
        # Without it `ray job submit` fails where another Ray runs on the machine, too.
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{DASHBOARD_PORT}",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray takes "127.0.0.1" for "this machine's address", and listens there, unless it is told
        # that this is a cluster of one, as it always is on macOS and Windows.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "PYTHONUNBUFFERED": "1",
    }


def make_token() -> None:
    """Have an authentication token at ~/.ray/auth_token that only the user can read."""
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
    """Whether there is an HTTP server behind the URL, and it has what is asked for.

    A 404 is no answer: Ray Serve's proxy is up before it knows the application's routes.
    """
    try:
        return httpx.get(url, timeout=2).status_code not in (404, *range(500, 600))
    except httpx.HTTPError:
        return False


def end_processes(roots: Iterable[psutil.Process], grace_s: float = 15) -> None:
    """End the processes and all their descendants: politely, then by force."""
    family = {p for root in roots for p in _family(root)}
    for process in family:
        _signal(process, signal.SIGTERM)
    _, alive = psutil.wait_procs(family, timeout=grace_s)
    # Some of them start others while they end.
    alive = [*alive, *(p for process in family for p in _family(process))]
    for process in alive:
        _signal(process, signal.SIGKILL)
    psutil.wait_procs(alive, timeout=grace_s)


def _family(root: psutil.Process) -> list[psutil.Process]:
    try:
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _signal(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return
