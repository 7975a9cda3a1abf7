"""Read the state of a Ray cluster from its dashboard, and remove what dead jobs left."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import NOT_IMPLEMENTED, OK
from typing import Any

import ray
from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled
from ray._private.state import jobs as drivers  # Ray 2.60: public only by dashboard
from ray._private.worker import get_dashboard_url  # Ray 2.60, issue 52629: no public one
from ray.job_submission import JobSubmissionClient
from ray.util.placement_group import PlacementGroup, PlacementGroupID, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from ray.util.state import list_actors, list_nodes, list_placement_groups, list_tasks

from ochat_ray.cluster.serve_requests import read_requests
from ochat_ray.cluster.view import (
    LABEL,
    Cluster,
    Group,
    Job,
    Node,
    Work,
    describe_job,
    describe_wait,
    format_bundles,
    left_by_dead_jobs,
)
from ochat_ray.errors import UserError, first_line

LIMIT = 10_000
"""Maximum entries per kind, the most that Ray's state API returns."""

FIRST_S, EVERY_S = 20.0, 60.0
"""Seconds from the start of a wait until it is first reported, and between reports."""

REMOVE_S = 30.0
"""Seconds until a node that does not answer is left out of a removal."""


def read_cluster(address: str | None = None) -> Cluster:
    """Return the state of a cluster.

    Args:
        address: URL of the dashboard; None takes RAY_API_SERVER_ADDRESS, RAY_ADDRESS or the last
            local `ray start`.

    Raises:
        UserError: No dashboard answers there.
    """
    try:
        with _asking(address):
            # Without a token, Ray 2.60's client of the GCS would abort the process.
            ensure_token_if_auth_enabled(create_token_if_missing=False)
            client = JobSubmissionClient(address, create_cluster_if_needed=False)
            url = client.get_address()
            complete: Any = {"detail": True, "limit": LIMIT, "raise_on_missing_output": False}
            not_removed: Any = [("state", "!=", "REMOVED")]
            not_dead: Any = [("state", "!=", "DEAD")]
            running: Any = [("state", "=", "RUNNING"), ("type", "=", "NORMAL_TASK")]
            groups = list_placement_groups(url, not_removed, **complete)
            actors = list_actors(url, not_dead, **complete)
            tasks = list_tasks(url, running, **complete)
            serve = _serve_state(client)
            return Cluster(
                jobs=tuple(map(_job, client.list_jobs())),
                nodes=tuple(map(_node, list_nodes(url, **complete))),
                groups=tuple(map(_group, groups)),
                work=tuple(map(_work, [*actors, *tasks])),
                applications=serve.get("applications", {}),
                requests=read_requests(serve, _metrics_targets(client) if serve else ()),
            )
    except UserError:
        raise
    except Exception as error:  # Ray's clients raise a dozen types, RuntimeError among them
        line = first_line(error, 300)
        if "uthentication" in line:  # in all of Ray's messages about tokens
            raise UserError(
                f"the Ray cluster refuses access ({line}); set RAY_AUTH_MODE=token, with the "
                "~/.ray/auth_token of the machine that started the cluster"
            ) from error
        raise UserError(
            f"no Ray cluster answers ({line}); start one, or give the URL of its dashboard, such "
            "as --address http://127.0.0.1:8265 with `ray dashboard cluster.yaml` running"
        ) from error


@contextmanager
def _asking(address: str | None) -> Iterator[None]:
    """Have Ray's clients use this URL: in Ray 2.60 the environment overrides their `address`."""
    name = "RAY_API_SERVER_ADDRESS"
    before = os.environ.get(name)
    if address is not None:
        os.environ[name] = address
    try:
        yield
    finally:
        if address is not None:
            os.environ.pop(name)
            if before is not None:
                os.environ[name] = before


def remove_leftovers() -> None:
    """Remove the placement groups that dead jobs of this project left in the connected cluster.

    A job whose entrypoint was killed counts as failed for the dashboard, though the driver that it
    started may live; the GCS's table of drivers decides.
    """
    cluster = _connected_cluster() or Cluster()
    dead = {driver["JobID"] for driver in drivers() if driver["IsDead"]}
    for group in left_by_dead_jobs(cluster):
        if group.job_id not in dead:
            continue
        _remove_group(group.id)
        print(
            f"removed placement group {group.id} ({format_bundles(group.bundles)}), which "
            f"{describe_job(cluster, group.job_id)} left",
            file=sys.stderr,
        )


def _remove_group(group_id: str) -> None:
    remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(group_id)))


def remove_on_all_nodes(directory: str) -> None:
    """Remove a directory on every node, such as the copy of a base model that workers left.

    Nodes that do not answer within `REMOVE_S` are named.
    """

    @ray.remote(num_cpus=0, max_retries=0)
    def remove() -> None:
        shutil.rmtree(directory, ignore_errors=True)

    pending = {}
    for node in ray.nodes():
        if node["Alive"]:
            affinity = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            task = remove.options(scheduling_strategy=affinity).remote()
            pending[task] = node["NodeManagerHostname"]
    _, late = ray.wait([*pending], num_returns=len(pending), timeout=REMOVE_S)
    for task in late:
        print(f"{pending[task]} did not answer; {directory} may be left there", file=sys.stderr)


@contextmanager
def report_waiting(stage: str) -> Iterator[None]:
    """Print what this job waits for, while its placement group waits for resources in the block."""
    job_id, ended = ray.get_runtime_context().get_job_id(), threading.Event()

    def look() -> str | None:
        cluster = _connected_cluster()
        return describe_wait(cluster, job_id) if cluster else None

    thread = threading.Thread(
        target=watch, args=(look, ended, f"{stage:>10}  "), name="report-waiting", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(1.0)  # it may wait for the dashboard


def watch(look: Callable[[], str | None], ended: threading.Event, prefix: str) -> None:
    """Print what `look` returns, until the event: at once if it is new, and again each minute."""
    shown, printed = None, 0.0
    delay = FIRST_S
    while not ended.wait(delay):
        delay = FIRST_S / 2
        text = look()
        if text and (text != shown or time.monotonic() - printed >= EVERY_S):
            print(prefix + text, file=sys.stderr, flush=True)
            printed = time.monotonic()
        shown = text


def _connected_cluster() -> Cluster | None:
    """Return the state of the cluster of this process; None if it has no dashboard.

    A cluster that a job started for itself alone has none, and no other jobs.
    """
    url = get_dashboard_url()
    try:
        return read_cluster(f"http://{url}") if url else None
    except UserError:
        return None


def _job(job: Any) -> Job:
    return Job(
        id=job.job_id or "",
        submission_id=job.submission_id or "",
        status=str(job.status.value),
        entrypoint=job.entrypoint,
        message=(job.message or "").strip(),
        is_labelled=LABEL in (job.metadata or {}),
        started=_seconds(job.start_time),
        ended=_seconds(job.end_time),
    )


def _node(node: Any) -> Node:
    return Node(
        id=node.node_id,
        address=node.node_ip,
        kind=node.labels.get("ray.io/node-group") or ("head" if node.is_head_node else "worker"),
        is_alive=node.state == "ALIVE",
        resources={
            name: amount for name, amount in node.resources_total.items() if name in ("CPU", "GPU")
        },
        started=_seconds(node.start_time_ms) or 0.0,
        ended=_seconds(node.end_time_ms),
    )


def _group(group: Any) -> Group:
    return Group(
        id=group.placement_group_id,
        job_id=group.creator_job_id,
        state=group.state,
        bundles=tuple(bundle["unit_resources"] for bundle in group.bundles or ()),
        is_detached=bool(group.is_detached),
    )


def _work(one: Any) -> Work:
    return Work(
        job_id=one.job_id,
        name=one.class_name if hasattr(one, "class_name") else one.name,
        is_pending=one.state not in ("ALIVE", "RUNNING"),
        resources=one.required_resources or {},
        in_group=bool(one.placement_group_id),
    )


def _serve_state(client: JobSubmissionClient) -> dict[str, Any]:
    """Return the state of Ray Serve, empty where it is not installed.

    Raises:
        UserError: The dashboard cannot read it. An empty state would let the cluster seem idle.
    """
    response = _get(client, "/api/serve/applications/")
    if response.status_code == NOT_IMPLEMENTED:
        return {}
    if response.status_code != OK:
        line = " ".join(response.text.split())[:200]
        raise UserError(f"the state of Ray Serve cannot be read ({response.status_code}: {line})")
    return dict(response.json())


def _metrics_targets(client: JobSubmissionClient) -> list[str]:
    """Return the addresses at which nodes export metrics, empty if Ray does not know any."""
    response = _get(client, "/api/prometheus/sd")
    groups = response.json() if response.status_code == OK else []
    return [target for group in groups for target in group["targets"]]


def _get(client: JobSubmissionClient, path: str) -> Any:
    return client._do_request("GET", path)  # no public method has these paths


def _seconds(milliseconds: int | None) -> float | None:
    return milliseconds / 1000 if milliseconds else None
