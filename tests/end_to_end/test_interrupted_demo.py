"""`make demo`, interrupted on purpose: no process and no incomplete result is left.

On the first tenth of the demo's conversations: what is interrupted is the same, and comes sooner.
"""

import os
import signal
import socket
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from ochat_ray.demo import assets

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(900)]

RUN = Path(__file__).parents[2] / "runs/demo"


@pytest.fixture(scope="module")
def small_inputs(tmp_path_factory):
    """Environment in which the demo's cache has fewer conversations, and the same base model."""
    conversations, base_model = assets.conversations(), assets.base_model()
    cache = tmp_path_factory.mktemp("cache")
    (cache / "ochat_ray").mkdir()
    with conversations.open("rb") as file:
        (cache / "ochat_ray" / conversations.name).write_bytes(file.read(12_500_000))
    (cache / "ochat_ray" / base_model.name).symlink_to(base_model)
    # What DeepSpeed has compiled is in the cache, too.
    compiled = os.environ.get("TORCH_EXTENSIONS_DIR", Path.home() / ".cache/torch_extensions")
    return {"XDG_CACHE_HOME": str(cache), "TORCH_EXTENSIONS_DIR": str(compiled)}


@pytest.fixture
def agents_port_in_use():
    """Something listens where another Ray's agent does, and the demo's would by default."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):  # another Ray does have it
            other.bind(("127.0.0.1", 52365))
            other.listen()
        yield


@pytest.mark.usefixtures("agents_port_in_use")
@pytest.mark.parametrize(
    ("stage", "sign", "manifest"),
    [
        ("prepare", "dedup  ", "data/manifest.json"),
        ("train", "train  step 0", "model/ochat.json"),
    ],
)
def test_ctrl_c_leaves_no_process_and_no_manifest(
    demo, running, small_inputs, stage, sign, manifest
):
    process = demo(environment=small_inputs, start_new_session=True, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if sign in line:
            break
    assert f"jobs/{stage}.py" in seen, seen
    assert any("gcs_server" in line for line in running().values())
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=90)
    assert process.returncode == 130
    assert running() == {}
    assert not (RUN / manifest).exists()


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
