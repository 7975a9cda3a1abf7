"""How the end-to-end tests start the demo, and what it must not leave behind."""

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
MARK = {"OCHAT_RAY_TEST": uuid.uuid4().hex}
STARTED = time.time()


@pytest.fixture(scope="session")
def demo():
    """Start `python -m ochat_ray.demo` with arguments, variables and Popen's options."""

    def start(*arguments, environment=None, **options):
        command = [sys.executable, "-m", "ochat_ray.demo", *arguments]
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | MARK | (environment or {}),
            text=True,
            stdout=subprocess.PIPE,
            # A shell's background job, as CI may be, starts with SIGINT ignored and hands that on.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            **options,
        )

    return start


@pytest.fixture(scope="session")
def running():
    """List the command lines, by process id, of what this run's demos started and is still up."""

    def find():
        found = {}
        for process in psutil.process_iter():
            try:
                if _is_of_this_run(process):
                    found[process.pid] = " ".join(process.cmdline())
            except psutil.Error:  # it has ended, or is another user's
                continue
        return found

    return find


def _is_of_this_run(process):
    if MARK.items() <= process.environ().items():
        return True
    # Some of Ray's processes overwrite their environment with their title.
    title = " ".join(process.cmdline()[:1])
    return (
        title.startswith("ray") and process.cwd() == str(ROOT) and process.create_time() >= STARTED
    )
