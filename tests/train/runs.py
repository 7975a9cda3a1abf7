"""Helpers for tests on Ray Train: killing workers, and reading metrics."""

import json
import os
import signal
import threading
import time
from pathlib import Path

from tests.processes import descendants

STEPS = 42
"""Optimizer steps of the undisturbed run: seven in each of six epochs."""


def metrics_of(output):
    """Return the lines of a local run's metrics.jsonl so far."""
    path = Path(output, "metrics.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def steps_of(metrics):
    """Return the lines of optimizer steps."""
    return [line for line in metrics if "loss" in line]


def kill_a_worker(when):
    """Start a thread that sends SIGKILL to a training worker once `when()` is true; return it."""

    def kill():
        while not when():
            time.sleep(0.05)
        os.kill(descendants("RayTrainWorker")[-1].pid, signal.SIGKILL)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    return thread
