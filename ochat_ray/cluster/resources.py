"""Query the resources of a Ray cluster, including nodes that its autoscaler may add."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import yaml

DEFINITION = "~/ray_bootstrap_config.yaml"
"""Cluster definition that `ray up` leaves on the head node, where the drivers of jobs run.

Ray offers no API for it. deploy/kubernetes/raycluster.yaml mounts one at the same path.
"""

_HEAD = "node:__internal_head__"
"""Custom resource that Ray gives only to the head node."""


def most(resource: str) -> int:
    """Return the maximum "CPU" or "GPU" count of the cluster, including nodes not yet started."""
    return _most(lambda node: int(node.get(resource, 0)))


def room_for(needs: dict[str, float]) -> float:
    """Return the maximum number of workers if each needs `needs` ("CPU", "GPU") on one node.

    The result is infinite where it cannot be known: on a node other than the head, and on
    Kubernetes without a cluster definition.
    """
    if _own_node_id() != head_node() or ("KUBERNETES_SERVICE_HOST" in os.environ and not _types()):
        return math.inf
    return _most(
        lambda node: min(int(node.get(name, 0) / need) for name, need in needs.items() if need)
    )


def head_node() -> str | None:
    """Return the head node's id; None while a replacement head has not joined yet."""
    heads = [node["NodeID"] for node in _nodes() if _HEAD in node["Resources"]]
    return heads[0] if heads else None


def apart_from_gpus() -> dict[str, Any]:
    """Return task options that keep a task off GPU nodes while CPU-only nodes have room.

    If the cluster definition has CPU-only node types, the task waits for such a node. Otherwise Ray
    uses its fallback as soon as the CPU-only nodes are busy, not only once they are gone.
    """
    with_gpus = [node["NodeID"] for node in _nodes() if node["Resources"].get("GPU")]
    if not with_gpus:
        return {}
    options: dict[str, Any] = {
        "label_selector": {"ray.io/node-id": f"!in({','.join(sorted(with_gpus))})"}
    }
    if not any(_holds(kind, "CPU") and not _holds(kind, "GPU") for kind in _types()):
        options["fallback_strategy"] = [{"label_selector": {}}]
    return options


def _most(count: Callable[[dict[str, Any]], int]) -> int:
    """Return the larger of two totals of `count`: over running nodes and over all defined nodes."""
    now = sum(count(node["Resources"]) for node in _nodes())
    defined = sum(int(kind.get("max_workers", 0)) * count(kind["resources"]) for kind in _types())
    return max(now, defined)


def _own_node_id() -> str:
    return ray.get_runtime_context().get_node_id()


def _nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _types() -> list[dict[str, Any]]:
    """Return the node types that the autoscaler may start."""
    path = Path(DEFINITION).expanduser()
    if not path.exists():
        return []
    types = yaml.safe_load(path.read_text()).get("available_node_types", {})
    return [{"resources": {}, **kind} for kind in types.values()]


def _holds(kind: dict[str, Any], resource: str) -> bool:
    return bool(kind.get("max_workers") and kind["resources"].get(resource))
