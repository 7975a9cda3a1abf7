"""Run generated Python programs in a sandbox made by bubblewrap.

A program sees a read-only Python, numpy and the system's libraries, an empty /tmp, no home, no
network, no other process and no environment variable. Processor time, memory, file size and number
of processes are limited. Where such a sandbox cannot be created, nothing is run.
"""

from __future__ import annotations

import importlib.util
import os
import resource
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from ochat_ray.errors import UserError

MEMORY_BYTES = 4 << 30
FILE_BYTES = 16 << 20
TMP_BYTES = 64 << 20
PROCESSES = 64
TEARDOWN_S = 30
OUTPUT_BYTES = 4000
"""Maximum size of the recorded output, its end."""

_TMP = "/tmp"  # noqa: S108 - within the sandbox

Reason = Literal["passed", "failed", "timed out"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """Result of one program, with the end of what it printed."""

    reason: Reason
    output: str


def check() -> None:
    """Check that programs can be run in a sandbox.

    Raises:
        UserError: bubblewrap is missing, or cannot create a sandbox on this machine.
    """
    if shutil.which("bwrap") is None:
        raise UserError(
            "the models' code is run in a sandbox of bubblewrap, which is not installed; install "
            "it (Debian, Ubuntu: apt install bubblewrap)"
        )
    found = run("import numpy", timeout_s=60)
    if found.reason != "passed":
        raise UserError(
            "bubblewrap cannot create a sandbox here, so that the models' code is not run: "
            f"{found.output.strip() or found.reason}"
        )


def run(program: str, *, timeout_s: float) -> Outcome:
    """Run a program; it passes if it runs to its last line, and exits with status 0."""
    mark = secrets.token_hex(8)
    with (
        tempfile.TemporaryDirectory() as folder,
        tempfile.TemporaryFile() as output,
        _until_gone() as alive,
    ):
        path = Path(folder, "program.py")
        # A program that exits early prints no mark.
        path.write_text(
            f"{program}\nprint()\nprint({mark!r})\n", encoding="utf-8", errors="replace"
        )
        process = subprocess.Popen(
            [*_sandbox(), "--ro-bind", str(path), "/program.py", "--", _python(), "-s",
             "/program.py"],
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env={},
            executable=shutil.which("bwrap"), start_new_session=True, pass_fds=[alive],
            preexec_fn=lambda: _limit(timeout_s),
        )  # fmt: skip
        try:
            status = process.wait(timeout_s)
            timed_out = status in (-signal.SIGXCPU, 128 + signal.SIGXCPU)
        except subprocess.TimeoutExpired:
            timed_out = True
        finally:
            # Also on Ctrl-C. bubblewrap's death ends all processes in the sandbox.
            process.kill()
            process.wait()
        size = output.seek(0, os.SEEK_END)
        output.seek(max(0, size - OUTPUT_BYTES))
        lines = output.read().decode("utf-8", "replace").rstrip("\n")
    passed = not timed_out and status == 0 and lines.endswith(mark)
    text = lines.removesuffix(mark).strip()
    return Outcome(
        reason="timed out" if timed_out else "passed" if passed else "failed", output=text
    )


@contextmanager
def _until_gone() -> Iterator[int]:
    """Yield a file descriptor; on leaving, wait until no process has it any more.

    The end of many processes takes time that the next program would lack.
    """
    ended, alive = os.pipe()
    try:
        yield alive
    finally:
        os.close(alive)
        select.select([ended], [], [], TEARDOWN_S)
        os.close(ended)


def _limit(timeout_s: float) -> None:
    """Set limits, in the child process before it becomes bubblewrap."""
    seconds = int(timeout_s) + 1
    limits = {
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_AS: MEMORY_BYTES,
        resource.RLIMIT_FSIZE: FILE_BYTES,
        resource.RLIMIT_NPROC: PROCESSES,
        resource.RLIMIT_CORE: 0,
    }
    for name, value in limits.items():
        _, hard = resource.getrlimit(name)
        if hard != resource.RLIM_INFINITY:
            value = min(value, hard)
        resource.setrlimit(name, (value, value))


def _python() -> str:
    return os.path.realpath(sys.executable)


@cache
def _sandbox() -> tuple[str, ...]:
    return (
        "bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL",
        "--hostname", "sandbox", *_mounts(), "--proc", "/proc", "--dev", "/dev",
        "--size", str(TMP_BYTES), "--tmpfs", _TMP, "--setenv", "PYTHONPATH", "/packages",
        "--setenv", "HOME", _TMP, "--setenv", "OPENBLAS_NUM_THREADS", "1", "--chdir", _TMP,
    )  # fmt: skip


def _mounts() -> Iterator[str]:
    """Yield bubblewrap's options for the libraries, this Python and numpy."""
    for name in ("/usr", "/lib", "/lib64", "/bin"):
        if Path(name).is_symlink():
            yield from ("--symlink", os.readlink(name), name)
        elif Path(name).exists():
            yield from ("--ro-bind", name, name)
    base = os.path.realpath(sys.base_prefix)
    if not base.startswith("/usr"):
        yield from ("--ro-bind", base, base)
    numpy = importlib.util.find_spec("numpy")
    assert numpy is not None
    assert numpy.origin is not None
    package = Path(numpy.origin).parent
    for folder in (package, package.with_name("numpy.libs")):
        if folder.exists():
            yield from ("--ro-bind", str(folder), f"/packages/{folder.name}")
