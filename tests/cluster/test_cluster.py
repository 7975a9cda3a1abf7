"""The jobs on a head and two workers, as they run on one machine; a training loses time alone."""

import json

import grpc
import httpx
import pytest

from tests.cluster.conftest import LONG, STEPS, wait_for
from tests.cluster.hosts import CLIENT
from tests.cluster.jobs import (
    OUTPUT,
    lose_head,
    meanwhile,
    preparation,
    result_of,
    train,
    training,
)
from tests.evaluate.endpoint import Endpoint

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]


def test_three_hosts_are_one_cluster(cluster):
    addresses = {node["node_ip"] for node in cluster.alive("nodes")}
    assert addresses == {host.address for host in cluster.members}


def test_only_who_has_the_token_is_let_in(cluster):
    assert httpx.get(f"{cluster.jobs_url}/api/jobs/").status_code in (401, 403)
    for host in cluster.members:
        assert host.inside("stat -c %a ~/.ray/auth_token").stdout.strip() == "600"
    token = cluster.token()
    for name in ("cluster.yaml", "runtime_env.yaml", "serve.yaml"):
        assert token not in (cluster.repository / name).read_text()


@pytest.mark.parametrize(
    ("port", "call"),
    [
        (6379, "ray.rpc.NodeInfoGcsService/GetAllNodeInfo"),
        (10001, "ray.rpc.RayletDriver/ClusterInfo"),
    ],
)
def test_no_driver_is_let_in_without_the_token(cluster, port, call):
    def answer(**options):
        with grpc.insecure_channel(f"{cluster.head.address}:{port}") as channel:
            try:
                channel.unary_unary(f"/{call}")(b"", timeout=20, **options)
            except grpc.RpcError as error:
                return error.code()
        return grpc.StatusCode.OK

    token = [("authorization", f"Bearer {cluster.token()}")]
    # With the token Ray Client's port finds fault with the empty request.
    assert answer(metadata=token) in (grpc.StatusCode.OK, grpc.StatusCode.NOT_FOUND)
    assert answer() == grpc.StatusCode.UNAUTHENTICATED


def test_the_dashboard_is_open_to_the_head_alone(cluster):
    listening = cluster.head.inside("ss -Hltn 'sport = :8265'").stdout.split()
    assert listening[3] == "127.0.0.1:8265"
    assert len(listening) == 5, listening


def test_prepare_reads_and_writes_shared_storage(cluster, conversations, prepared):
    assert prepared["counts"]["read"] == prepared["counts"]["kept"] == conversations
    assert json.loads(cluster.read("runs/data/manifest.json"))["digest"] == prepared["digest"]


def test_an_output_that_hosts_do_not_share_is_one_clear_line(cluster, conversations):
    printed = cluster.fail("ray", "job", "submit", "--", *preparation("/root/alone"))
    assert "\njobs/prepare.py: /root/alone/.work-" in printed
    assert " does not exist on host-" in printed
    assert "Traceback" not in printed


def test_the_code_travels_with_a_job_to_hosts_without_it(cluster, prepared):
    with cluster.without_code():  # as when `prepared` ran
        printed = cluster.fail("ray", "job", "submit", "--", *preparation(f"{OUTPUT}/stayed"))
    assert "can't open file" in printed


def test_two_hosts_train_one_model(trained):
    assert (trained["world_size"], trained["step"]) == (2, STEPS)


def test_a_slow_link_is_said_to_be_one(printed_by_training):
    assert "slow link: " in printed_by_training


def test_evaluation_as_a_job_asks_from_the_head(cluster):
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
    assert endpoint.askers == {cluster.head.address}


def wait_for_checkpoint(cluster, name, attempts=1):
    def found():
        # state.json is written last; the directory's name ends with the attempt's.
        keys = cluster.objects(f"runs/{name}/checkpoints/step-")
        saved = {key.split("/")[3] for key in keys if key.endswith("/state.json")}
        return len({directory.rpartition("-")[2] for directory in saved}) == attempts

    wait_for(found, f"a checkpoint of attempt {attempts} at {name}", 240)


def steps_of(cluster, name):
    lines = map(json.loads, cluster.read(f"runs/{name}/metrics.jsonl").splitlines())
    return [line["step"] for line in lines if "loss" in line]


def test_a_host_cut_off_and_then_the_head_lost_while_training_lead_to_the_same_loss(
    cluster, trained
):
    job = training("lost", *LONG)

    def cut():
        wait_for_checkpoint(cluster, "lost")
        cluster.workers[1].unplug()
        cluster.wait_for_hosts(2)
        cluster.workers[1].plug()
        wait_for_checkpoint(cluster, "lost", attempts=2)

    lose_head(cluster, cut, *job)
    assert not cluster.objects("runs/lost/ochat.json")
    result = result_of(cluster.submit(*job))
    assert (result["world_size"], result["step"]) == (2, STEPS)
    assert steps_of(cluster, "lost") == list(range(1, STEPS + 1))
    assert result["eval_after"]["loss"] == pytest.approx(trained["eval_after"]["loss"], 1e-5)


def test_a_host_lost_for_good_while_training_leaves_the_same_loss(cluster, trained):
    lost = cluster.workers[0]

    def crash():
        wait_for_checkpoint(cluster, "smaller")
        lost.crash()

    with meanwhile(crash):
        result = train(cluster, "smaller", *LONG, "--num-workers-min", "1")
    assert (result["world_size"], result["step"]) == (1, STEPS)
    assert steps_of(cluster, "smaller") == list(range(1, STEPS + 1))
    assert result["eval_after"]["loss"] == pytest.approx(trained["eval_after"]["loss"], 1e-3)
    lost.boot()
    cluster.wait_for_hosts(3)  # else `ray down` meets a start of Ray that is under way
