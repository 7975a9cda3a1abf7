"""Problems, cost and queue of a cluster, from states that are made here."""

import pytest

from ochat_ray.cluster.view import Cluster, Group, Job, Node, Requests, Work
from ochat_ray.status.overview import (
    cost_of,
    describe,
    failed_jobs,
    idle_hours,
    queue_of,
    status_of,
)
from ochat_ray.status.runs import Run

NOW = 1_000_000.0
HOUR = 3600.0


def job(name, status, *, command="python jobs/train.py", started=NOW - HOUR, ended=None, **rest):
    return Job(id=name, status=status, entrypoint=command, started=started, ended=ended, **rest)


def node(kind, hours, *, ended=None, resources=None):
    return Node(
        id=kind, address="10.0.0.1", kind=kind, is_alive=ended is None,
        resources=resources or {"CPU": 4.0}, started=NOW - hours * HOUR, ended=ended,
    )  # fmt: skip


def status(cluster=None, runs=(), prices=None):
    return status_of(cluster or Cluster(), runs, prices or {}, now=NOW, since_s=24 * HOUR)


def test_an_idle_cluster_is_well():
    assert status().problems == []
    assert describe(status()) == "all well"


def test_a_failed_job_is_a_problem_with_its_last_line():
    failed = job("7", "FAILED", ended=NOW - 60, message="Driver:\njobs/train.py: no complete data")
    assert list(failed_jobs([failed], now=NOW, since_s=HOUR)) == [
        "job 7 failed: jobs/train.py: no complete data (python jobs/train.py)"
    ]


@pytest.mark.parametrize(
    "jobs",
    [
        [job("1", "FAILED", ended=NOW - 2 * HOUR)],  # long ago
        [job("1", "STOPPED", ended=NOW)],
        [job("1", "FAILED", started=NOW - HOUR, ended=NOW), job("2", "RUNNING", started=NOW - 60)],
    ],
)
def test_an_old_a_stopped_or_a_repeated_job_is_no_problem(jobs):
    assert list(failed_jobs(jobs, now=NOW, since_s=HOUR)) == []


def test_a_command_that_failed_again_is_one_problem():
    jobs = [
        job("2", "FAILED", started=NOW - 60, ended=NOW - 30),
        job("1", "FAILED", started=NOW - 600, ended=NOW - 300),
    ]
    (line,) = failed_jobs(jobs, now=NOW, since_s=HOUR)
    assert line.startswith("job 2 ")


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ("stalled", "train in out stalled: no progress for 45 minutes"),
        ("failed", "train in out failed: it is not complete, and no process works on it"),
        ("unreadable", "train in out unreadable: a line"),
    ],
)
def test_a_run_that_needs_someone_is_a_problem(state, text):
    run = Run(output="out", stage="train", state=state, progress="a line", idle_s=45 * 60)
    (line,) = status(runs=[run]).problems
    assert line.startswith(text)


@pytest.mark.parametrize("state", ["running", "complete", "absent"])
def test_other_runs_are_well(state):
    assert status(runs=[Run(output="out", stage="train", state=state)]).problems == []


def test_cost_counts_dead_nodes_and_names_types_without_a_price():
    nodes = [
        node("head", 10),
        node("train", 4),
        node("train", 6, ended=NOW - 5 * HOUR),
        node("serve", 1),
    ]
    cost = cost_of(nodes, {"head": 0.5, "train": 20.0, "gone": 1.0}, NOW)
    assert cost["total"] == pytest.approx(10 * 0.5 + (4 + 1) * 20)
    assert cost["by_kind"]["train"] == {"hours": 5.0, "cost": 100.0}
    assert (cost["without_price"], cost["without_node"]) == (["serve"], ["gone"])


@pytest.mark.parametrize(
    ("parts", "hours"),
    [
        ({"jobs": [job("1", "RUNNING")]}, 0),
        ({"jobs": [job("1", "FAILED", ended=NOW - 2 * HOUR), job("2", "PENDING")]}, 0),
        ({"jobs": [job("1", "FAILED", ended=NOW - 2 * HOUR)], "nodes": [node("head", 5)]}, 2),
        ({"applications": {"chat": {}}, "nodes": [node("head", 5)]}, 0),
        ({"nodes": [node("head", 5), node("train", 1), node("gone", 9, ended=NOW)]}, 5),
        ({}, 0),
    ],
)
def test_a_cluster_is_idle_since_its_last_job_or_its_start(parts, hours):
    assert idle_hours(Cluster(**parts), NOW) == hours


def test_without_prices_there_is_no_cost():
    assert status(Cluster(nodes=[node("head", 1)])).cost is None


def test_the_queue_holds_jobs_groups_and_actors_that_wait():
    cluster = Cluster(
        jobs=[job("01", "RUNNING"), job("x", "PENDING", message="waiting for resources")],
        groups=[Group(id="g", job_id="01", state="PENDING", bundles=[{"GPU": 1.0}])],
        work=[
            Work(job_id="02", name="Replica", is_pending=True, resources={"GPU": 1.0}),
            Work(job_id="02", name="Running", resources={"GPU": 1.0}),
        ],
    )
    assert list(queue_of(cluster)) == [
        "job x has not started (waiting for resources)",
        "job 01 is waiting for 1 x {1 GPU}; the cluster has 0 GPU in total, held by job 02: 1 GPU",
        "actor Replica of job 02 is starting or waits for 1 GPU",
    ]


def application(state, replicas):
    details = {"target_num_replicas": 2, "replicas": [{"state": one} for one in replicas]}
    return {"status": state, "message": "a\nb", "deployments": {"Model": details}}


def test_replicas_are_counted_and_an_unhealthy_application_is_a_problem():
    well = status(Cluster(applications={"chat": application("RUNNING", ["RUNNING", "STARTING"])}))
    assert well.problems == []
    assert "serve   chat RUNNING: running replicas: Model 1 of 2" in describe(well)
    assert "serve   chat Model: ? requests running, ? waiting" in describe(well)
    ill = status(Cluster(applications={"chat": application("UNHEALTHY", [])}))
    assert ill.problems == ["application chat is UNHEALTHY: a b"]


def served(ids, *, most, most_waiting):
    return {
        "target_num_replicas": len(ids),
        "replicas": [{"state": "RUNNING", "replica_id": one} for one in ids],
        "deployment_config": {"max_ongoing_requests": most, "max_queued_requests": most_waiting},
    }


def test_requests_are_counted_per_replica_beside_their_limits():
    deployments = {
        "Ingress": served(["i"], most=4096, most_waiting=-1),
        "Model": served(["m", "n"], most=16, most_waiting=64),
    }
    cluster = Cluster(
        applications={"chat": {"status": "RUNNING", "deployments": deployments}},
        requests=Requests(
            running={
                ("chat", "Ingress", "i"): 40,
                ("chat", "Model", "m"): 16,
                ("chat", "Model", "n"): 15,
                ("chat", "Model", "old"): 3,
            },
            waiting={("chat", "Ingress"): 0, ("chat", "Model"): 9},
        ),
    )
    assert describe(status(cluster)).splitlines() == [
        "serve   chat RUNNING: running replicas: Ingress 1 of 1, Model 2 of 2",
        "serve   chat Ingress: 40 of 4096 requests running, 0 waiting",
        "serve   chat Model: 31 of 32 requests running, 9 of 64 waiting (by replica: m 16, n 15)",
        "all well",
    ]


def test_requests_that_cannot_be_counted_are_no_zeros():
    deployments = {"Model": served(["m"], most=16, most_waiting=64)}
    cluster = Cluster(
        applications={"chat": {"status": "RUNNING", "deployments": deployments}},
        requests=Requests(unreachable=["10.0.0.7", "10.0.0.8"]),
    )
    _, model, node_, _ = describe(status(cluster)).splitlines()
    assert model == "serve   chat Model: ? of 16 requests running, ? of 64 waiting"
    assert node_.startswith("serve   requests are not counted on 10.0.0.7, 10.0.0.8, whose")


def test_names_of_others_write_no_lines_and_control_no_terminal():
    hostile = job("1", "RUNNING", command="python x.py \x1b[2J\n\u202eall well\ud800\u4f60")
    lines = describe(status(Cluster(jobs=[hostile]))).splitlines()
    assert lines == [
        r"job     1 running, 1.0 h: python x.py \x1b[2J\n\u202eall well\ud800" + "\u4f60",
        "all well",
    ]


def test_a_leftover_of_a_dead_job_is_a_problem():
    cluster = Cluster(
        jobs=[job("01", "FAILED", ended=NOW - 100 * HOUR)],
        groups=[Group(id="g", job_id="01", state="CREATED", bundles=[{"GPU": 1.0}] * 8)],
    )
    (line,) = status(cluster).problems
    assert line == (
        "placement group g of dead job 01 holds 8 x {1 GPU}; the next training removes it"
    )


def test_the_text_has_a_line_per_thing():
    cluster = Cluster(
        jobs=[job("raysubmit_1", "RUNNING")],
        nodes=[node("train", 2, resources={"GPU": 8.0}), node("gone", 5, ended=NOW - HOUR)],
    )
    run = Run(
        output="s3://b/model", stage="train", state="running", progress="step 7 of 90",
        checkpoint=5, host="ip-10-0-0-1", idle_s=3.0,
    )  # fmt: skip
    assert describe(status(cluster, [run], {"train": 10.0})).splitlines() == [
        "node    train 10.0.0.1: 8 GPU, 2.0 h",
        "job     raysubmit_1 running, 1.0 h: python jobs/train.py",
        "run     train s3://b/model running: step 7 of 90; last checkpoint: step 5; on ip-10-0-0-1",
        "cost    20.00 (train 2.0 h = 20.00)",
        "cost    no price for gone",
        "all well",
    ]
