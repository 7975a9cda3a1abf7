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
    Requests,
    describe_wait,
    format_bundles,
    format_resources,
    left_by_dead_jobs,
)
from ochat_ray.status.runs import Run

_BROKEN = ("DEPLOY_FAILED", "UNHEALTHY")
"""States of an application of Ray Serve that need attention."""

NO_LIMIT = -1
"""`max_queued_requests` of a deployment of Ray Serve without a limit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """Everything that `jobs/status.py` prints; `problems` has one line per failure."""

    jobs: list[dict[str, Any]]
    nodes: list[dict[str, Any]]
    runs: list[dict[str, Any]]
    applications: list[dict[str, Any]]
    unreachable_metrics: list[str]
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
    applications = list(_applications(cluster))
    return Status(
        jobs=[_shown(job, now) for job in cluster.jobs if _is_shown(job, now, since_s)],
        nodes=[asdict(node) | {"hours": hours_of(node, now)} for node in cluster.nodes],
        runs=[asdict(run) for run in runs],
        applications=applications,
        unreachable_metrics=list(cluster.requests.unreachable),
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


def _applications(cluster: Cluster) -> Iterator[dict[str, Any]]:
    for name, one in sorted(cluster.applications.items()):
        deployments: Any = one.get("deployments") or {}
        message = " ".join(str(one.get("message") or "").split())[:200]
        yield {
            "name": name,
            "status": one.get("status"),
            "message": message,
            "deployments": {
                deployment: _deployment(details, (name, deployment), cluster.requests)
                for deployment, details in sorted(deployments.items())
            },
        }


def _deployment(
    details: Mapping[str, Any], name: tuple[str, str], requests: Requests
) -> dict[str, Any]:
    """Return a deployment's replicas and requests; counts are None where they are unknown."""
    replicas = list(details.get("replicas", ()))
    states = [replica.get("state") for replica in replicas]
    ids = [str(replica.get("replica_id")) for replica in replicas]
    by_replica = {one: n for one in ids if (n := requests.running.get((*name, one))) is not None}
    limits = details.get("deployment_config", {})
    running, most = states.count("RUNNING"), limits.get("max_ongoing_requests")
    most_waiting = limits.get("max_queued_requests")
    return {
        "running": running,
        "replicas": len(replicas),
        "target": details.get("target_num_replicas"),
        "requests": {
            "running": sum(by_replica.values()) if by_replica or not replicas else None,
            "max_running": running * most if most is not None else None,
            "waiting": requests.waiting.get(name),
            "max_waiting": most_waiting if most_waiting != NO_LIMIT else None,
            "by_replica": by_replica,
        },
    }


def _is_shown(job: Job, now: float, since_s: float) -> bool:
    return job.ended is None or now - job.ended <= since_s


def _shown(job: Job, now: float) -> dict[str, Any]:
    seconds = None if job.started is None else (job.ended or now) - job.started
    return {"id": job.name, "status": job.status, "command": job.entrypoint, "seconds": seconds}


def describe(status: Status) -> str:
    """Return a status as text for a terminal, one thing per line.

    Names and commands come from others: characters that would end a line or control the terminal
    are escaped.
    """
    return "\n".join(map(_printable, _lines(status)))


def _printable(line: str) -> str:
    if line.isprintable():
        return line
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in line
    )


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
        for name, details in one["deployments"].items():
            yield f"serve   {one['name']} {name}: {_describe_requests(details['requests'])}"
    if status.unreachable_metrics:
        nodes = ", ".join(status.unreachable_metrics)
        yield (
            f"serve   requests are not counted on {nodes}, whose metrics cannot be read from here; "
            "run this command on the head"
        )
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


def _describe_requests(requests: Mapping[str, Any]) -> str:
    """Return counts of requests as text: "3 of 32 requests running, 0 of 64 waiting"."""

    def amount(kind: str) -> str:
        count, most = requests[kind], requests[f"max_{kind}"]
        return f"{'?' if count is None else count}" + (f" of {most}" if most is not None else "")

    text = f"{amount('running')} requests running, {amount('waiting')} waiting"
    by_replica = ", ".join(f"{one} {count}" for one, count in requests["by_replica"].items())
    return f"{text} (by replica: {by_replica})" if len(requests["by_replica"]) > 1 else text
