"""`make demo`, broken off on purpose: no process and nothing half-written is left."""

import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(900)]

RUN = Path(__file__).parents[2] / "runs/demo"


@pytest.mark.parametrize(
    ("stage", "sign", "whole"),
    [
        ("prepare", "tokenize  ", "data/manifest.json"),
        ("train", "train  starting workers", "model/ochat.json"),
        ("train", "train  step 0", "model/ochat.json"),
    ],
)
def test_ctrl_c_leaves_no_process_and_nothing_that_looks_whole(demo, leftovers, stage, sign, whole):
    process = demo(start_new_session=True, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if sign in line:
            break
    assert f"jobs/{stage}.py" in seen, seen
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=90)
    assert process.returncode == 130
    assert leftovers() == []
    assert not (RUN / whole).exists()


def test_a_port_in_use_is_one_clear_line(demo):
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", 8265))
        other.listen()
        process = demo(stderr=subprocess.PIPE)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert errors.startswith("demo: port 8265 is in use")
    assert len(errors.strip().splitlines()) == 1
