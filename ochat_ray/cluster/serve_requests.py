"""Count the requests in Ray Serve, from the metrics that Ray's nodes export.

Serve's own state has no counts of requests. Each node exports the metrics of its processes for
Prometheus, without a token; with Ray 2.60's defaults they are up to ten seconds old.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
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
        texts = dict(zip(wanted, pool.map(_fetch, wanted), strict=True))
    answered = {target: text for target, text in texts.items() if text is not None}
    # The head has targets of its dashboard and autoscaler as well, which have no requests.
    unreachable = hosts - {_host(target) for target in answered}
    return count_requests(serve, answered.values(), unreachable=tuple(sorted(unreachable)))


def _host(target: str) -> str | None:
    return urlsplit(f"//{target}").hostname


def _fetch(target: str) -> str | None:
    try:
        response = httpx.get(f"http://{target}/metrics", timeout=TIMEOUT_S, trust_env=False)
        return response.raise_for_status().text
    except (httpx.HTTPError, httpx.InvalidURL):
        return None


def count_requests(
    serve: Mapping[str, Any], texts: Iterable[str], *, unreachable: tuple[str, ...] = ()
) -> Requests:
    """Return the counts of requests in metrics in Prometheus' text format.

    Values of processes that Serve's state does not have are left out: Ray exports the last values
    of dead ones for some time.
    """
    actors = list(_actors(serve))
    replicas = {actor.get("replica_id") for actor in actors}
    routers = {actor.get("actor_id") for actor in actors}
    running, waiting = Counter[tuple[str, str, str]](), Counter[tuple[str, str]]()
    for sample in _samples(texts):
        label = sample.labels
        deployment = label.get("application", ""), label.get("deployment", "")
        if sample.name == PROCESSING and label.get("replica") in replicas:
            running[(*deployment, label["replica"])] += int(sample.value)
        elif sample.name == QUEUED and label.get("actor_id") in routers:
            waiting[deployment] += int(sample.value)
    return Requests(running=running, waiting=waiting, unreachable=unreachable)


def _samples(texts: Iterable[str]) -> Iterator[Sample]:
    for text in texts:
        # A node exports thousands of other metrics, and their lines are slow to parse.
        lines = [line for line in text.splitlines() if line.startswith((PROCESSING, QUEUED))]
        for family in text_string_to_metric_families("\n".join(lines)):
            yield from family.samples


def _actors(serve: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the proxies and replicas of Serve's state."""
    yield from serve.get("proxies", {}).values()
    for application in serve.get("applications", {}).values():
        for deployment in application.get("deployments", {}).values():
            yield from deployment.get("replicas", ())
