"""The runs of the tests on Ray Train, and what they have written."""

import json
import os
import signal
import threading
import time
from pathlib import Path

from tests.processes import descendants

STEPS = 42
"""Of the undisturbed run: seven in each of six epochs."""


def metrics_of(output):
    """The lines of a local run's metrics.jsonl so far."""
    path = Path(output, "metrics.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def steps_of(metrics):
    """The lines of optimizer steps."""
    return [line for line in metrics if "loss" in line]


def kill_a_worker(when):
    """Send SIGKILL to a worker of training once `when()` is true; the thread that waits."""

    def kill():
        while not when():
            time.sleep(0.05)
        os.kill(descendants("RayTrainWorker")[-1].pid, signal.SIGKILL)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    return thread
