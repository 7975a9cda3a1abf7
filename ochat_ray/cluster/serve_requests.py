"""Count the requests in Ray Serve, from the metrics that Ray's nodes export.

Serve's own state has no counts of requests. Each node exports the metrics of its processes for
Prometheus, without a token; with Ray 2.60's defaults they are up to ten seconds old.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from math import isfinite
from typing import Any
from urllib.parse import urlsplit

import httpx
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from ochat_ray.cluster.view import Requests

PROCESSING = "ray_serve_replica_processing_queries"
"""Requests that a replica processes."""

QUEUED = "ray_serve_deployment_queued_queries"
"""Requests that wait for a replica of a deployment, per router, which is in a proxy or in another
replica."""

TIMEOUT_S = 3.0
"""Timeout in seconds for the metrics of a node."""


def read_requests(serve: Mapping[str, Any], targets: Iterable[str]) -> Requests:
    """Return the counts of requests in Ray Serve.

    Args:
        serve: its state, as the dashboard returns it.
        targets: addresses (host:port) at which nodes export metrics. Only those of nodes with a
            process of Serve are read.
    """
    hosts = {str(actor.get("node_ip")) for actor in _actors(serve)}
    wanted = [target for target in targets if _host(target) in hosts]
    with ThreadPoolExecutor(max_workers=16) as pool:
        found = dict(zip(wanted, pool.map(_fetch, wanted), strict=True))
    answered = {target: samples for target, samples in found.items() if samples is not None}
    # The head has targets of its dashboard and autoscaler as well, which have no requests.
    unreachable = hosts - {_host(target) for target in answered}
    samples = [sample for one in answered.values() for sample in one]
    return count_requests(serve, samples, unreachable=tuple(sorted(unreachable)))


def _host(target: str) -> str | None:
    return urlsplit(f"//{target}").hostname


def _fetch(target: str) -> list[Sample] | None:
    """Return the samples of a node, or None if no metrics are there."""
    try:
        response = httpx.get(f"http://{target}/metrics", timeout=TIMEOUT_S, trust_env=False)
        return samples_of(response.raise_for_status().text)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError):
        return None


def samples_of(text: str) -> list[Sample]:
    """Return the samples of requests in metrics in Prometheus' text format.

    Raises:
        ValueError: The text is something else.
    """
    # A node exports thousands of other metrics, and their lines are slow to parse.
    lines = [line for line in text.splitlines() if line.startswith((PROCESSING, QUEUED))]
    families = text_string_to_metric_families("\n".join(lines))
    return [sample for family in families for sample in family.samples if isfinite(sample.value)]


def count_requests(
    serve: Mapping[str, Any], samples: Iterable[Sample], *, unreachable: tuple[str, ...] = ()
) -> Requests:
    """Return the counts of requests in samples of metrics.

    Values of processes that Serve's state does not have are left out: Ray exports the last values
    of dead ones for some time.
    """
    actors = list(_actors(serve))
    replicas = {actor.get("replica_id") for actor in actors}
    routers = {actor.get("actor_id") for actor in actors}
    running, waiting = Counter[tuple[str, str, str]](), Counter[tuple[str, str]]()
    for sample in samples:
        label = sample.labels
        deployment = label.get("application", ""), label.get("deployment", "")
        if sample.name == PROCESSING and label.get("replica") in replicas:
            running[(*deployment, label["replica"])] += int(sample.value)
        elif sample.name == QUEUED and label.get("actor_id") in routers:
            waiting[deployment] += int(sample.value)
    return Requests(running=running, waiting=waiting, unreachable=unreachable)


def _actors(serve: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the proxies and replicas of Serve's state."""
    yield from serve.get("proxies", {}).values()
    for application in serve.get("applications", {}).values():
        for deployment in application.get("deployments", {}).values():
            yield from deployment.get("replicas", ())
