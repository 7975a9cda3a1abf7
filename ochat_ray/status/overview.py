"""Status of a cluster and its runs: problems, cost, and text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ochat_ray.cluster.view import (
    ENDED,
    Cluster,
    Job,
    Node,
    describe_wait,
    format_bundles,
    format_resources,
    left_by_dead_jobs,
)
from ochat_ray.status.runs import Run

_BROKEN = ("DEPLOY_FAILED", "UNHEALTHY")
"""States of an application of Ray Serve that need attention."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """Everything that `jobs/status.py` prints; `problems` has one line per failure."""

    jobs: list[dict[str, Any]]
    nodes: list[dict[str, Any]]
    runs: list[dict[str, Any]]
    applications: list[dict[str, Any]]
    queue: list[str]
    cost: dict[str, Any] | None
    idle_hours: float
    problems: list[str] = field(default_factory=list)


def status_of(
    cluster: Cluster,
    runs: Sequence[Run],
    prices: Mapping[str, float],
    *,
    now: float,
    since_s: float,
) -> Status:
    """Return the status of a cluster.

    Args:
        cluster: its state.
        runs: state of the output directories.
        prices: price per hour of each node type; without any, no cost is computed.
        now: Unix time.
        since_s: seconds for which a failed job is a problem after its end.
    """
    applications = list(_applications(cluster.applications))
    return Status(
        jobs=[_shown(job, now) for job in cluster.jobs if _is_shown(job, now, since_s)],
        nodes=[asdict(node) | {"hours": hours_of(node, now)} for node in cluster.nodes],
        runs=[asdict(run) for run in runs],
        applications=applications,
        queue=list(queue_of(cluster)),
        cost=cost_of(cluster.nodes, prices, now) if prices else None,
        idle_hours=idle_hours(cluster, now),
        problems=[
            *failed_jobs(cluster.jobs, now=now, since_s=since_s),
            *_bad_runs(runs),
            *_bad_applications(applications),
            *_leftovers(cluster),
        ],
    )


def failed_jobs(jobs: Iterable[Job], *, now: float, since_s: float) -> Iterator[str]:
    """Yield a line per command whose latest job failed recently."""
    latest: dict[str, Job] = {}
    for job in sorted(jobs, key=lambda job: job.started or 0.0):
        latest[job.entrypoint] = job
    for job in latest.values():
        if job.status == "FAILED" and now - (job.ended or now) <= since_s:
            reason = (job.message.splitlines() or ["no reason given"])[-1][:200]
            yield f"job {job.name} failed: {reason} ({job.entrypoint[:120]})"


def hours_of(node: Node, now: float) -> float:
    """Return the hours for which a node has been in the cluster."""
    return max(0.0, (node.ended or now) - node.started) / 3600


def idle_hours(cluster: Cluster, now: float) -> float:
    """Return the hours since the last job ended; 0 while there is a job or a served model.

    Without any job it is the time since the first of the nodes started.
    """
    if cluster.applications or any(job.status not in ENDED for job in cluster.jobs):
        return 0.0
    starts = [node.started for node in cluster.nodes if node.is_alive]
    last = [job.ended or now for job in cluster.jobs] or [min(starts, default=now)]
    return max(0.0, now - max(last)) / 3600


def cost_of(nodes: Iterable[Node], prices: Mapping[str, float], now: float) -> dict[str, Any]:
    """Return hours and cost per node type, the total, and the node types without a price.

    Only time as a member of the cluster counts: boot and setup of a node, disks and traffic cost
    more.
    """
    hours: dict[str, float] = {}
    for node in nodes:
        hours[node.kind] = hours.get(node.kind, 0.0) + hours_of(node, now)
    by_kind = {
        kind: {"hours": spent, "cost": spent * prices[kind]}
        for kind, spent in sorted(hours.items())
        if kind in prices
    }
    return {
        "total": sum(one["cost"] for one in by_kind.values()),
        "by_kind": by_kind,
        "without_price": sorted(set(hours) - set(prices)),
        "without_node": sorted(set(prices) - set(hours)),
    }


def queue_of(cluster: Cluster) -> Iterator[str]:
    """Yield a line per job that waits."""
    for job in cluster.jobs:
        if job.status == "PENDING":
            yield f"job {job.name} has not started ({job.message or job.entrypoint[:120]})"
    for job_id in dict.fromkeys(group.job_id for group in cluster.groups if group.is_waiting):
        yield f"job {job_id} is {describe_wait(cluster, job_id)}"
    for work in cluster.work:
        if work.is_pending and not work.in_group:
            needs = format_resources(work.resources) or "no resources"
            yield f"actor {work.name} of job {work.job_id} is starting or waits for {needs}"


def _bad_runs(runs: Iterable[Run]) -> Iterator[str]:
    for run in runs:
        if run.is_well:
            continue
        reason = {
            "stalled": f"no progress for {(run.idle_s or 0) / 60:.0f} minutes",
            "failed": "it is not complete, and no process works on it; run the same command again",
            "unreadable": run.progress,
        }[run.state]
        yield f"{run.stage} in {run.output} {run.state}: {reason}"


def _bad_applications(applications: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    for one in applications:
        if one["status"] in _BROKEN:
            yield f"application {one['name']} is {one['status']}: {one['message']}"


def _leftovers(cluster: Cluster) -> Iterator[str]:
    for group in left_by_dead_jobs(cluster):
        yield (
            f"placement group {group.id} of dead job {group.job_id} holds "
            f"{format_bundles(group.bundles)}; the next training removes it"
        )


def _applications(applications: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for name, one in sorted(applications.items()):
        deployments = {}
        for deployment, details in sorted(one.get("deployments", {}).items()):
            states = [replica.get("state") for replica in details.get("replicas", ())]
            deployments[deployment] = {
                "running": states.count("RUNNING"),
                "replicas": len(states),
                "target": details.get("target_num_replicas"),
            }
        message = " ".join(str(one.get("message") or "").split())[:200]
        yield {
            "name": name,
            "status": one.get("status"),
            "message": message,
            "deployments": deployments,
        }


def _is_shown(job: Job, now: float, since_s: float) -> bool:
    return job.ended is None or now - job.ended <= since_s


def _shown(job: Job, now: float) -> dict[str, Any]:
    seconds = None if job.started is None else (job.ended or now) - job.started
    return {
        "id": job.name, "status": job.status, "command": job.entrypoint, "seconds": seconds,
    }  # fmt: skip


def describe(status: Status) -> str:
    """Return a status as text for a terminal."""
    return "\n".join(_lines(status))


def _lines(status: Status) -> Iterator[str]:
    for node in status.nodes:
        if node["is_alive"]:
            resources = format_resources(node["resources"]) or "no CPU or GPU"
            yield f"node    {node['kind']} {node['address']}: {resources}, {node['hours']:.1f} h"
    for job in status.jobs:
        hours = f", {job['seconds'] / 3600:.1f} h" if job["seconds"] is not None else ""
        yield f"job     {job['id']} {job['status'].lower()}{hours}: {job['command'][:120]}"
    for run in status.runs:
        parts = [run["progress"]]
        parts += [f"last checkpoint: step {run['checkpoint']}"] if run["checkpoint"] else []
        parts += [f"on {run['host']}"] if run["host"] else []
        text = "; ".join(part for part in parts if part)
        yield f"run     {run['stage']} {run['output']} {run['state']}" + (
            f": {text}" if text else ""
        )
    for one in status.applications:
        replicas = ", ".join(
            f"{name} {d['running']} of {d['target'] if d['target'] is not None else d['replicas']}"
            for name, d in one["deployments"].items()
        )
        yield f"serve   {one['name']} {one['status']}: running replicas: {replicas or 'none'}"
    for line in status.queue:
        yield f"queue   {line}"
    if status.cost is not None:
        kinds = ", ".join(
            f"{kind} {one['hours']:.1f} h = {one['cost']:.2f}"
            for kind, one in status.cost["by_kind"].items()
        )
        yield f"cost    {status.cost['total']:.2f} ({kinds or 'no node has a price'})"
        for key, text in (("without_price", "no price for"), ("without_node", "no node of type")):
            if names := status.cost[key]:
                yield f"cost    {text} {', '.join(names)}"
    for line in status.problems:
        yield f"PROBLEM {line}"
    if not status.problems:
        yield "all well"
