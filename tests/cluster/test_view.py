"""Conclusions from the state of a cluster: leftovers of dead jobs, and what a start waits for."""

import pytest

from ochat_ray.cluster import state
from ochat_ray.cluster.view import (
    Cluster,
    Group,
    Job,
    Node,
    Work,
    describe_wait,
    left_by_dead_jobs,
)

TRAIN = "python jobs/train.py --recipe openchat"


def job(number, status="RUNNING", entrypoint=TRAIN, **rest):
    return Job(id=f"0{number}000000", status=status, entrypoint=entrypoint, **rest)


def group(name, number, state="CREATED", bundles=({"GPU": 1.0},) * 2, **rest):
    return Group(id=name, job_id=f"0{number}000000", state=state, bundles=bundles, **rest)


def node(gpus, *, is_alive=True):
    return Node(
        id="n",
        address="10.0.0.1",
        kind="train",
        is_alive=is_alive,
        resources={"GPU": gpus},
        started=0.0,
    )


@pytest.mark.parametrize(
    "entrypoint",
    [
        TRAIN,
        "/home/ubuntu/env/bin/python /home/ubuntu/ochat_ray/jobs/train.py",
        "ochat-ray train --recipe demo",
        "python -m ochat_ray.jobs.command train",
        "serve run ochat_ray.serve:app",
    ],
)
def test_a_job_of_this_project_is_known_by_its_command(entrypoint):
    assert job(1, entrypoint=entrypoint).is_ours


@pytest.mark.parametrize("entrypoint", ["python other/train.py", "python myjobs/train.py2", ""])
def test_other_jobs_are_not_ours_without_the_label(entrypoint):
    assert not job(1, entrypoint=entrypoint).is_ours
    assert job(1, entrypoint=entrypoint, is_labelled=True).is_ours


@pytest.mark.parametrize("status", ["SUCCEEDED", "FAILED", "STOPPED"])
def test_a_group_of_a_dead_training_is_left(status):
    left = group("a", 1)
    assert left_by_dead_jobs(Cluster(jobs=[job(1, status)], groups=[left])) == [left]


@pytest.mark.parametrize(
    ("jobs", "groups"),
    [
        ([job(1, "RUNNING")], [group("a", 1)]),
        ([job(1, "PENDING")], [group("a", 1)]),
        ([job(1, "FAILED", "python other.py")], [group("a", 1)]),
        ([], [group("a", 1)]),  # Ray has forgotten the job
        ([job(1, "FAILED")], [group("a", 1, is_detached=True)]),
        ([job(1, "FAILED"), job(2)], [group("a", 2)]),
    ],
)
def test_other_groups_are_not_touched(jobs, groups):
    assert left_by_dead_jobs(Cluster(jobs=jobs, groups=groups)) == []


def test_a_job_with_its_resources_waits_for_nothing():
    assert describe_wait(Cluster(jobs=[job(1)], groups=[group("a", 1)]), "01000000") is None


def test_a_wait_names_the_resources_and_who_holds_them():
    cluster = Cluster(
        jobs=[job(1, submission_id="raysubmit_x"), job(2), job(3, entrypoint="serve run app")],
        nodes=[node(4.0), node(8.0, is_alive=False)],
        groups=[
            group("a", 1, "PENDING", ({"GPU": 1.0},) * 4),
            group("b", 2, bundles=({"GPU": 1.0},) * 3),
        ],
        work=[
            Work(job_id="03000000", name="ModelReplica", resources={"GPU": 1.0, "CPU": 1.0}),
            Work(job_id="02000000", name="Worker", resources={"GPU": 1.0}, in_group=True),
            Work(job_id="03000000", name="New", resources={"GPU": 1.0}, is_pending=True),
        ],
    )
    assert describe_wait(cluster, "01000000") == (
        "waiting for 4 x {1 GPU}; the cluster has 4 GPU in total, held by "
        f"job 02000000 ({TRAIN}, running): 3 GPU; job 03000000 (serve run app, running): 1 GPU"
    )


def test_a_wait_for_nodes_says_so():
    cluster = Cluster(jobs=[job(1)], groups=[group("a", 1, "PENDING", ({"GPU": 1.0},))])
    assert describe_wait(cluster, "01000000") == (
        "waiting for 1 x {1 GPU}; the cluster has 0 GPU in total, held by no job: more nodes are "
        "needed"
    )


def test_a_wait_is_reported_within_30_seconds_and_then_once_per_minute(monkeypatch):

    class Clock:
        now = 0.0

        def wait(self, seconds):
            self.now += seconds
            return self.now > 200

    clock, printed = Clock(), []
    monkeypatch.setattr(state.time, "monotonic", lambda: clock.now)
    monkeypatch.setattr("builtins.print", lambda text, **_: printed.append((clock.now, text)))
    texts = iter([None, "waiting for A", *["waiting for B"] * 100])
    state.watch(lambda: next(texts), clock, "train  ")
    assert printed[:3] == [
        (30.0, "train  waiting for A"),
        (40.0, "train  waiting for B"),
        (100.0, "train  waiting for B"),
    ]


def test_the_group_of_a_driver_that_lives_is_kept_though_its_job_has_failed(monkeypatch, capsys):
    removed = []
    groups = [group("aa", 1), group("bb", 2)]
    cluster = Cluster(jobs=[job(1, "FAILED"), job(2, "FAILED")], groups=groups)
    drivers = [{"JobID": "01000000", "IsDead": False}, {"JobID": "02000000", "IsDead": True}]
    monkeypatch.setattr(state, "_connected_cluster", lambda: cluster)
    monkeypatch.setattr(state, "drivers", lambda: drivers)
    monkeypatch.setattr(state, "_remove_group", removed.append)
    state.remove_leftovers()
    assert removed == ["bb"]
    assert capsys.readouterr().err == (
        f"removed placement group bb (2 x {{1 GPU}}), which job 02000000 ({TRAIN}, failed) left\n"
    )
