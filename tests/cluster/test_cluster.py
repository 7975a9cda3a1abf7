"""The jobs on a head and two workers, as they run on one machine."""

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest

from tests.cluster.conftest import free_port, wait_for
from tests.cluster.hosts import CLIENT
from tests.evaluate.endpoint import Endpoint
from tests.pages import share_page

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

REPLICA = ":Model"
PAGES, OUTPUT = 120, "s3://bucket/runs"


def test_three_hosts_are_one_cluster(cluster):
    addresses = {node["node_ip"] for node in cluster.alive("nodes")}
    assert addresses == {host.address for host in cluster.hosts.all}


def test_only_who_has_the_token_is_let_in(cluster):
    assert httpx.get(f"{cluster.jobs_url}/api/jobs/").status_code in (401, 403)
    for host in cluster.hosts.all:
        assert host.inside("stat -c %a ~/.ray/auth_token").stdout.strip() == "600"
    token = cluster.token()
    for name in ("cluster.yaml", "runtime_env.yaml", "serve.yaml"):
        assert token not in (cluster.repository / name).read_text()


def test_the_dashboard_is_open_to_the_head_alone(cluster):
    listening = cluster.head.inside("ss -Hltn 'sport = :8265'").stdout.split()
    assert listening[3] == "127.0.0.1:8265"
    assert len(listening) == 5, listening


@pytest.fixture(scope="session")
def pages(cluster):
    for number in range(PAGES):
        items = [
            {"from": "human", "value": f"question {number}"},
            {"from": "gpt", "value": f"<p>answer {number}</p>"},
        ]
        page = share_page(items, id=f"p{number}", model="Model: GPT-4")
        cluster.s3.put_object(Bucket="bucket", Key=f"pages/{number}.html", Body=page)


def prepare(cluster, name):
    """The manifest of a run of prepare."""
    return result_of(cluster.submit(
        "python", "jobs/prepare.py", "--input", "s3://bucket/pages", "--recipe", "openchat",
        "--tokenizer", "tiny", "--output", f"{OUTPUT}/{name}", "--eval-ratio", "0.1", "--json",
    ))  # fmt: skip


def train(cluster, name, *options):
    """The manifest of a model that two workers train, each on a host of its own."""
    return result_of(cluster.submit(
        "python", "jobs/train.py", "--data", f"{OUTPUT}/data", "--model", "tiny", "--recipe",
        "openchat", "--output", f"{OUTPUT}/{name}", "--num-workers", "2", "--dtype", "float32",
        "--max-tokens", "512", "--tokens-per-step", "1024", "--json", *options,
    ))  # fmt: skip


def result_of(printed):
    """The JSON object of a job's `--json`."""
    lines = [line for line in printed.splitlines() if line.startswith("{")]
    return json.loads(lines[-1])


@contextmanager
def meanwhile(work):
    """Do this in a thread; what it raises is raised here."""
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(work)
        yield
        running.result()


@pytest.fixture(scope="session")
def prepared(cluster, pages):
    return prepare(cluster, "data")


def test_prepare_reads_and_writes_shared_storage(cluster, prepared):
    assert prepared["counts"]["read"] == prepared["counts"]["kept"] == PAGES
    assert json.loads(cluster.read("runs/data/manifest.json"))["digest"] == prepared["digest"]


@pytest.fixture(scope="session")
def trained(cluster, prepared):
    return train(cluster, "model", "--max-steps", "4")


def test_two_hosts_train_one_model(trained):
    assert (trained["world_size"], trained["step"]) == (2, 4)


@pytest.fixture
def served(cluster, trained):
    """The URL of the trained model, served by a replica on each worker."""
    start = "serve run ochat_ray.serve:app model=s3://bucket/runs/model min_replicas=2 ui=false"
    cluster.run("ray", "job", "submit", "--no-wait", "--", *start.split(), "kv_cache_gib=0.25")
    port = free_port()
    with cluster.forwarded(port, 8000):
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: is_ready(url), "a replica", 180)
        yield url
        cluster.submit("serve", "shutdown", "--yes")


def is_ready(url):
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False


def test_replicas_on_two_hosts_answer(cluster, served, trained):
    def hosts():
        return {a["node_id"] for a in cluster.alive("actors") if a["class_name"].endswith(REPLICA)}

    wait_for(lambda: len(hosts()) == 2, "replicas on two hosts", 120)
    model = httpx.get(f"{served}/v1/models").json()["data"][0]
    assert model["training"]["data_digest"] == trained["data_digest"]
    ask = {"model": "openchat", "messages": [{"role": "user", "content": "question 1"}]}
    for _ in range(6):
        reply = httpx.post(
            f"{served}/v1/chat/completions", json=ask | {"max_tokens": 4}, timeout=60
        )
        assert reply.status_code == 200, reply.text


def test_evaluation_asks_from_every_host(cluster):
    questions = [
        {"question_id": n, "text": f"question {n}", "category": "generic"} for n in range(30)
    ]
    lines = "".join(json.dumps(question) + "\n" for question in questions)
    cluster.head.inside("cat > ~/questions.jsonl", input=lines)
    endpoint = Endpoint(lambda body: "8 6" if body["model"] == "judge" else body["model"])
    with endpoint.serving(CLIENT):
        result = result_of(cluster.submit(
            "python", "jobs/evaluate.py", "--questions", "/root/questions.jsonl", "--output",
            "/root/evaluation", "--model", "ours", "--baseline", "base", "--judge", "judge",
            "--url", endpoint.url, "--judge-url", endpoint.url, "--samples", "1", "--json",
        ))  # fmt: skip
    assert (result["scores"][0]["judgments"], result["scores"][0]["score"]) == (60, 100)
    assert len(endpoint.asked) == 2 * 30 + 60
    assert endpoint.askers == {host.address for host in cluster.hosts.all}


def test_a_host_cut_off_while_prepare_runs_changes_nothing(cluster, prepared):
    lost = cluster.workers[0]

    def cut():
        wait_for(lambda: cluster.objects("runs/cut/"), "the first file of the run", 120)
        lost.unplug()
        wait_for(lambda: len(cluster.alive("nodes")) == 2, "the host's loss", 120)

    with meanwhile(cut):
        again = prepare(cluster, "cut")
    assert again["digest"] == prepared["digest"]
    assert again["counts"] == prepared["counts"]
    lost.plug()
    # The autoscaler starts Ray on it again.
    wait_for(lambda: len(cluster.alive("nodes")) == 3, "the host's return", 240)


def test_a_host_cut_off_while_training_comes_back_to_the_same_loss(cluster, prepared):
    lost, options = cluster.workers[1], ("--max-steps", "40", "--epochs", "10")
    undisturbed = train(cluster, "whole", *options)

    def has_checkpoint():
        # state.json is written last.
        return any(key.endswith("/state.json") for key in cluster.objects("runs/lost/checkpoints/"))

    def cut():
        wait_for(has_checkpoint, "a checkpoint", 180)
        lost.unplug()
        wait_for(lambda: len(cluster.alive("nodes")) == 2, "the host's loss", 120)
        lost.plug()

    with meanwhile(cut):
        result = train(cluster, "lost", *options)
    assert (result["world_size"], result["step"]) == (2, 40)
    lines = [json.loads(line) for line in cluster.read("runs/lost/metrics.jsonl").splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 41))
    assert result["eval_after"]["loss"] == pytest.approx(undisturbed["eval_after"]["loss"], 1e-5)
