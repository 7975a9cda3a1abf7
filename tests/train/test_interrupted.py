"""Ctrl-C at any moment of a training: status 130, one line, and no process left."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

from ochat_ray.run_dir import RunDir
from ochat_ray.run_lock import hold

# Each has its own job and Ray.
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
LINE = "interrupted; run it again: incomplete files are not used"


def session_of(process):
    """Processes of the session that a process leads, itself aside."""
    return [p for p in psutil.process_iter() if p.pid != process.pid and _session(p) == process.pid]


def _session(process):
    try:
        return os.getsid(process.pid)
    except ProcessLookupError:
        return None


@pytest.mark.parametrize(
    ("moment", "delay_s", "times"),
    [
        ("starting workers", 5.0, 1),
        (None, 2.0, 1),
        (None, 6.0, 1),
        ("starting workers", 0.0, 3),
        ("step 0 ", 0.0, 1),
        ("step 7 ", 0.3, 2),
    ],
)
def test_ctrl_c_ends_with_130_and_one_line(data, model_directory, tmp_path, moment, delay_s, times):
    output = tmp_path / "model"
    with tempfile.TemporaryDirectory(prefix="ochat-", dir="/tmp") as ray_files:
        job = subprocess.Popen(
            [
                *(sys.executable, "jobs/train.py", "--data", data, "--model", model_directory),
                *("--output", output, "--num-workers", "1", "--max-steps", "1000"),
                *("--epochs", "1000", "--checkpoint-every", "5"),
            ],
            cwd=ROOT,
            env={k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
            | {"RAY_TMPDIR": ray_files},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # A shell's background job, as CI may be, starts with SIGINT ignored and hands that on.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )
        seen, reached = [], threading.Event()

        def read():
            for line in job.stderr:
                seen.append(line)
                if moment is not None and moment in line:
                    reached.set()
            reached.set()

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        try:
            if moment is not None:
                assert reached.wait(200)
            time.sleep(delay_s)
            for _ in range(times):  # as a terminal does, to the process group
                os.killpg(job.pid, signal.SIGINT)
                time.sleep(0.3)
            assert job.wait(60) == 130, "".join(seen)
            reader.join(10)
            assert seen[-1].strip() == LINE, "".join(seen)
            assert "Traceback" not in "".join(seen)
            # An agent of Ray's that had just been started looks for its head for a minute.
            deadline = time.monotonic() + 90
            while session_of(job) and time.monotonic() < deadline:
                time.sleep(0.2)
            assert session_of(job) == []
        finally:
            for process in [*session_of(job), job]:
                process.kill()
            job.wait()
    with hold(RunDir.open(str(output)), "train"):
        assert not (output / "ochat.json").exists()
