"""The jobs on a head and two workers, as they run on one machine."""

import json

import httpx
import pytest

from tests.pages import share_page

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

PAGES, OUTPUT = 120, "s3://bucket/runs"


def test_three_hosts_are_one_cluster(cluster):
    addresses = {node["node_ip"] for node in cluster.nodes()}
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


@pytest.fixture(scope="session")
def prepared(cluster, pages):
    """The manifest of a run of prepare on all hosts."""
    printed = cluster.submit(
        "python", "jobs/prepare.py", "--input", "s3://bucket/pages", "--recipe", "openchat",
        "--tokenizer", "tiny", "--output", f"{OUTPUT}/data", "--eval-ratio", "0.1", "--json",
    )  # fmt: skip
    return result_of(printed)


def result_of(printed):
    """The JSON object of a job's `--json`."""
    lines = [line for line in printed.splitlines() if line.startswith("{")]
    return json.loads(lines[-1])


def test_prepare_reads_and_writes_shared_storage(cluster, prepared):
    assert prepared["counts"]["read"] == prepared["counts"]["kept"] == PAGES
    found = cluster.s3.get_object(Bucket="bucket", Key="runs/data/manifest.json")["Body"].read()
    assert json.loads(found)["digest"] == prepared["digest"]


@pytest.fixture(scope="session")
def trained(cluster, prepared):
    """The manifest of a model that two workers trained, each on a host of its own."""
    printed = cluster.submit(
        "python", "jobs/train.py", "--data", f"{OUTPUT}/data", "--model", "tiny", "--recipe",
        "openchat", "--output", f"{OUTPUT}/model", "--num-workers", "2", "--max-steps", "4",
        "--dtype", "float32", "--max-tokens", "512", "--tokens-per-step", "1024", "--json",
    )  # fmt: skip
    return result_of(printed)


def test_two_hosts_train_one_model(trained):
    """A host has room for one worker."""
    assert (trained["world_size"], trained["step"]) == (2, 4)
