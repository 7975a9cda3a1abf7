"""`make demo`, as a newcomer runs it, and then as a newcomer breaks it.

Slow, and with downloads, if they have not been made.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import openai
import psutil
import pytest

from ochat_ray.cluster import local_cluster
from ochat_ray.demo import assets

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


@pytest.fixture(scope="module")
def kept(demo, running):
    """A demo that left its server up; its output."""
    process = demo("--keep")
    output, _ = process.communicate()
    print(output)
    assert process.returncode == 0, output
    yield output
    assert demo("stop").wait() == 0
    assert running() == {}


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


def submit(job):
    """What a job prints that `ray job submit` runs."""
    done = subprocess.run(
        ["ray", "job", "submit", "--", "python", job],
        env=local_cluster.environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_job_that_is_complete_is_not_done_again(kept):
    before = (RUN / "data/manifest.json").stat().st_mtime_ns
    assert "nothing to do" in submit("jobs/prepare.py")
    assert (RUN / "data/manifest.json").stat().st_mtime_ns == before


def test_the_model_is_scored_against_its_base(kept):
    output = RUN / "evaluation"
    shutil.rmtree(output, ignore_errors=True)
    assert "demo: " in submit("jobs/evaluate.py")
    lines = [(output / name).read_text() for name in ("answers.jsonl", "judgments.jsonl")]
    assert [text.count("\n") for text in lines] == [10, 30]
    results = json.loads((output / "results.json").read_text())
    (one,) = results["scores"]
    assert (one["model"], results["baseline"], results["judge"]) == ("demo", "base", "base")
    assert (one["judgments"], one["failed"]) == (30, 0), lines[1]
    assert {json.loads(line)["finish_reason"] for line in lines[1].splitlines()} == {"stop"}
    assert one["low"] <= one["score"] <= one["high"]
    # It is the model that the demo trained, on the data that it prepared.
    manifest = json.loads((RUN / "data/manifest.json").read_text())
    assert results["models"]["demo"]["training"]["data_digest"] == manifest["digest"]
    assert "Such scores test the machinery" in (output / "report.html").read_text()
    # What was served before is served still.
    assert httpx.get("http://127.0.0.1:8000/health").status_code == 200


def test_only_ray_serve_s_replicas_listen_on_another_address(kept, running):
    """Theirs are gRPC servers for each other, which ask for the token; Ray has no option."""
    loopback = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    elsewhere, here, started = [], 0, running()
    for connection in psutil.net_connections("tcp"):
        if connection.status != psutil.CONN_LISTEN or connection.pid not in started:
            continue
        name = started[connection.pid]
        if connection.laddr.ip in loopback:
            here += 1
        elif not name.startswith("ray::ServeReplica"):
            elsewhere.append((connection.laddr, name[:100]))
    assert here > 3
    assert elsewhere == []


def test_there_is_one_ray(kept, running):
    heads = [line for line in running().values() if "gcs_server" in line[:200]]
    assert len(heads) == 1


def test_the_dashboard_wants_the_token(kept):
    assert httpx.get("http://127.0.0.1:8265/api/jobs/").status_code in (401, 403)


def test_what_was_fetched_is_not_fetched_again(kept):
    second = subprocess.run(
        [sys.executable, "-m", "ochat_ray.demo.assets"], capture_output=True, text=True, check=True
    )
    assert second.stderr == ""
    assert str(assets.cache_dir()) in second.stdout
