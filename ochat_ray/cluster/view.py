"""Jobs, nodes and placement groups of a Ray cluster as plain values, and conclusions from them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

LABEL = "ochat_ray"
"""Key of a job's metadata in Ray that marks the jobs of this project."""

_OURS = re.compile(r"(?:^|[\s/])(?:jobs/\w+\.py|ochat-ray|ochat_ray[./:]\S+)(?:\s|$)")

ENDED = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})
"""Statuses of jobs without a driver process."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A job; `id` is empty until its driver has connected. Times are Unix seconds."""

    id: str
    submission_id: str = ""
    status: str
    entrypoint: str
    message: str = ""
    is_labelled: bool = False
    started: float | None = None
    ended: float | None = None

    @property
    def is_ours(self) -> bool:
        """True for a job of this project, by its label or its command."""
        return self.is_labelled or bool(_OURS.search(self.entrypoint))

    @property
    def name(self) -> str:
        """Identifier that `ray job` accepts, or the driver's id."""
        return self.submission_id or self.id


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """A node, dead or alive; `kind` is its node type. Times are Unix seconds."""

    id: str
    address: str
    kind: str
    is_alive: bool
    resources: Mapping[str, float]
    started: float
    ended: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """A placement group that has not been removed: its creator's job, and resources per bundle."""

    id: str
    job_id: str
    state: str
    bundles: Sequence[Mapping[str, float]]
    is_detached: bool = False

    @property
    def is_waiting(self) -> bool:
        """True while the group waits for resources."""
        return self.state in ("PENDING", "RESCHEDULING")


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """An actor or a running task; it uses resources of a placement group, or its own."""

    job_id: str
    name: str
    is_pending: bool = False
    resources: Mapping[str, float]
    in_group: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Requests:
    """Counts of requests in Ray Serve.

    `running` is by (application, deployment, replica), `waiting` by (application, deployment).
    `unreachable` has the addresses of nodes of Serve whose metrics could not be read.
    """

    running: Mapping[tuple[str, str, str], int] = field(default_factory=dict)
    waiting: Mapping[tuple[str, str], int] = field(default_factory=dict)
    unreachable: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """State of a cluster at one time."""

    jobs: Sequence[Job] = ()
    nodes: Sequence[Node] = ()
    groups: Sequence[Group] = ()
    work: Sequence[Work] = ()
    applications: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    requests: Requests = field(default_factory=Requests)

    def job(self, job_id: str) -> Job | None:
        """Return the job with a driver of this id."""
        return next((job for job in self.jobs if job.id == job_id), None)


def left_by_dead_jobs(cluster: Cluster) -> list[Group]:
    """Return the placement groups that no process of this project will remove.

    Ray removes a job's groups when the job ends, but not a group that is registered just after
    (ray issues 61689 and 62753). Groups of other projects' jobs, of jobs that are alive or unknown,
    and detached ones are not among them.
    """
    found = []
    for group in cluster.groups:
        job = cluster.job(group.job_id)
        if job is not None and job.is_ours and job.status in ENDED and not group.is_detached:
            found.append(group)
    return found


def describe_wait(cluster: Cluster, job_id: str) -> str | None:
    """Return the resources that a job waits for, and their holders; None if it does not wait."""
    waiting = [group for group in cluster.groups if group.job_id == job_id and group.is_waiting]
    if not waiting:
        return None
    wanted = _sum(bundle for group in waiting for bundle in group.bundles)
    names = set(wanted)
    total = _sum(node.resources for node in cluster.nodes if node.is_alive)
    text = (
        f"waiting for {format_bundles(waiting[-1].bundles)}; the cluster has "
        f"{format_resources({name: total[name] for name in wanted})} in total"
    )
    held = list(_holders(cluster, names, without=job_id))
    return f"{text}, held by {'; '.join(held) or 'no job: more nodes are needed'}"


def _holders(cluster: Cluster, names: Collection[str], without: str) -> Iterable[str]:
    """Yield each other job that holds some of these resources."""
    by_job: dict[str, Counter[str]] = {}
    for group in cluster.groups:
        if not group.is_waiting:
            by_job.setdefault(group.job_id, Counter()).update(_sum(group.bundles))
    for work in cluster.work:
        if not (work.is_pending or work.in_group):
            by_job.setdefault(work.job_id, Counter()).update(work.resources)
    for job_id, resources in sorted(by_job.items()):
        held = {name: resources[name] for name in sorted(names) if resources[name]}
        if held and job_id != without:
            yield f"{describe_job(cluster, job_id)}: {format_resources(held)}"


def describe_job(cluster: Cluster, job_id: str) -> str:
    """Return a job's id, command and status as text."""
    job = cluster.job(job_id)
    if job is None:
        return f"job {job_id}"
    return f"job {job.name} ({job.entrypoint[:120]}, {job.status.lower()})"


def format_bundles(bundles: Sequence[Mapping[str, float]]) -> str:
    """Return bundles as text, equal ones counted: "8 x {1 GPU}"."""
    counts = Counter(format_resources(bundle) for bundle in bundles)
    return " + ".join(f"{count} x {{{text}}}" for text, count in counts.items())


def format_resources(resources: Mapping[str, float]) -> str:
    """Return amounts of resources as text: "1 CPU, 1 GPU"."""
    return ", ".join(f"{amount:g} {name}" for name, amount in sorted(resources.items()))


def _sum(many: Iterable[Mapping[str, float]]) -> Counter[str]:
    total = Counter[str]()
    for one in many:
        total.update(one)
    return total
