"""How the end-to-end tests start the demo, and what it must not leave behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def demo():
    """Start `python -m ochat_ray.demo` with arguments and Popen's options."""

    def start(*arguments, **options):
        command = [sys.executable, "-m", "ochat_ray.demo", *arguments]
        return subprocess.Popen(
            command,
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            # A shell's background job, as CI may be, starts with SIGINT ignored and hands that on.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            **options,
        )

    return start


@pytest.fixture(scope="session")
def leftovers():
    """List the processes of Ray, Serve or a job."""
    names = ("raylet", "gcs_server", "ray::", "serve run", "python jobs/")

    def find():
        found = []
        for process in psutil.process_iter(["pid", "cmdline"]):
            line = " ".join(process.info["cmdline"] or [])
            if any(name in line for name in names) and process.pid != os.getpid():
                found.append(line[:120])
        return found

    return find
