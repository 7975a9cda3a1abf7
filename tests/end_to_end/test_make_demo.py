"""`make demo`, as a newcomer runs it, and then as a newcomer breaks it.

Slow (about 8 minutes on two cores) and with downloads, if they have not been made.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import openai
import psutil
import pytest

from ochat_ray import demo_assets, local_cluster

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
RUN = ROOT / "runs/demo"
URL = "http://127.0.0.1:8000/v1"
ASK = {
    "model": "demo",
    "messages": [{"role": "user", "content": "Write one sentence about the sea."}],
    "temperature": 0,
    "max_tokens": 60,
}


def demo(*arguments, **options):
    command = [sys.executable, "-m", "ochat_ray.demo", *arguments]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, **options)


def leftovers():
    """Processes of Ray, Serve or a job."""
    names = ("raylet", "gcs_server", "ray::", "serve run", "jobs/prepare.py", "jobs/train.py")
    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if any(name in line for name in names) and process.pid != os.getpid():
            found.append(line[:120])
    return found


@pytest.fixture(scope="module")
def kept():
    """A demo that left its server up; its output."""
    assert leftovers() == []
    process = demo("--keep")
    output, _ = process.communicate()
    print(output)
    assert process.returncode == 0, output
    yield output
    assert demo("stop").wait() == 0
    assert leftovers() == []


def test_the_summary_says_what_happened(kept):
    manifest = json.loads((RUN / "data/manifest.json").read_text())
    counts = manifest["counts"]
    # The file's 17,671 whole conversations, and the torn one.
    assert counts["read"] == 17_672
    assert counts["dropped"]["torn"] == 1
    assert counts["read"] == counts["kept"] + sum(counts["dropped"].values())
    summary = kept[kept.index("── summary") :]
    assert f"{counts['kept']:,} kept" in summary
    assert str(RUN / "data/report.html") in summary
    assert "http://127.0.0.1:8000/v1" in summary


def test_the_held_out_loss_fell_and_the_end_of_turn_is_learned(kept):
    model = json.loads((RUN / "model/ochat.json").read_text())
    assert model["eval_after"]["loss"] < model["eval_before"]["loss"]
    assert model["eval_before"]["end_of_turn"] == 0
    assert model["eval_after"]["end_of_turn"] > 0.2
    assert model["world_size"] == 2
    assert "(stop, " in kept


def test_the_readme_has_the_counts_that_it_printed(kept):
    counts = json.loads((RUN / "data/manifest.json").read_text())["counts"]
    readme = (ROOT / "README.md").read_text()
    for number in (counts["read"], counts["kept"], *counts["dropped"].values()):
        assert number == 1 or f"{number:,}" in readme


def test_curl_and_the_official_client_get_the_same_answers(kept):
    curl = subprocess.run(
        [
            *("curl", "-sS", f"{URL}/chat/completions"),
            *("-H", "Content-Type: application/json", "-d", json.dumps(ASK)),
        ],
        capture_output=True,
        check=True,
    )
    choice = json.loads(curl.stdout)["choices"][0]
    client = openai.OpenAI(base_url=URL, api_key="none")
    whole = client.chat.completions.create(**ASK).choices[0]
    assert (whole.message.content, whole.finish_reason) == (
        choice["message"]["content"],
        choice["finish_reason"],
    )
    chunks = [c for c in client.chat.completions.create(**ASK, stream=True) if c.choices]
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole.message.content
    assert chunks[-1].choices[0].finish_reason == whole.finish_reason


def test_a_job_that_is_complete_is_not_done_again(kept):
    before = (RUN / "data/manifest.json").stat().st_mtime_ns
    done = subprocess.run(
        ["ray", "job", "submit", "--", "python", "jobs/prepare.py"],
        env=local_cluster.environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing to do" in done.stdout
    assert (RUN / "data/manifest.json").stat().st_mtime_ns == before


def test_nothing_listens_on_another_address(kept):
    ours = {p.pid for p in psutil.process_iter(["environ"]) if _is_ours(p)}
    listening = [
        connection.laddr
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.pid in ours
    ]
    assert listening
    assert {address.ip for address in listening} <= {"127.0.0.1", "::1"}


def _is_ours(process):
    try:
        return "ray" in " ".join(process.cmdline())
    except psutil.Error:
        return False


def test_the_dashboard_wants_the_token(kept):
    assert httpx.get("http://127.0.0.1:8265/api/jobs/").status_code in (401, 403)


def test_what_was_fetched_is_not_fetched_again(kept):
    second = subprocess.run(
        [sys.executable, "-m", "ochat_ray.demo_assets"], capture_output=True, text=True, check=True
    )
    assert second.stderr == ""
    assert str(demo_assets.cache_dir()) in second.stdout


@pytest.mark.parametrize(
    ("stage", "sign", "whole"),
    [
        ("prepare", "clean  2,000", "data/manifest.json"),
        ("train", "train  starting workers", "model/ochat.json"),
        ("train", "train  step 0", "model/ochat.json"),
    ],
)
def test_ctrl_c_leaves_no_process_and_nothing_that_looks_whole(stage, sign, whole):
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
    assert not list(RUN.glob(".training-*"))


def test_a_port_in_use_is_one_clear_line():
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", 8265))
        other.listen()
        process = demo(stderr=subprocess.PIPE)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert errors.startswith("demo: port 8265 is in use")
    assert len(errors.strip().splitlines()) == 1
