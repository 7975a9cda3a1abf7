"""What a Ray cluster has, what its autoscaler may add, and which of it a stage leaves alone."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import yaml

DEFINITION = "~/ray_bootstrap_config.yaml"
"""Where `ray up` leaves the definition on the head, on which jobs' drivers run. Ray tells it
nowhere else. deploy/kubernetes/raycluster.yaml puts one there, too."""

_HEAD = "node:__internal_head__"
"""The resource that Ray gives the head alone."""


def most(resource: str) -> int:
    """How many "CPU" or "GPU" the cluster may have in all: nodes not yet started count, too."""
    return _most(lambda node: int(node.get(resource, 0)))


def room_for(needs: dict[str, float]) -> float:
    """How many of what takes so many "CPU" and "GPU" of one node the cluster may ever hold.

    Infinite where nobody can tell: on another node than the head, and where Kubernetes adds nodes
    of which there is no definition.
    """
    if _here() != head_node() or ("KUBERNETES_SERVICE_HOST" in os.environ and not _types()):
        return math.inf
    return _most(
        lambda node: min(int(node.get(name, 0) / need) for name, need in needs.items() if need)
    )


def head_node() -> str | None:
    """The head's id; None while a new one is not there yet."""
    heads = [node["NodeID"] for node in _nodes() if _HEAD in node["Resources"]]
    return heads[0] if heads else None


def apart_from_gpus() -> dict[str, Any]:
    """Options of a task that keep it off the nodes that have GPUs while others have room.

    Where the definition has nodes with CPUs alone, it waits for one of them. Elsewhere Ray takes
    the fallback as soon as the others are busy, not only once they are gone.
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
    """The sum of what `count` finds in a node's resources: now, or once all are started."""
    now = sum(count(node["Resources"]) for node in _nodes())
    defined = sum(int(kind.get("max_workers", 0)) * count(kind["resources"]) for kind in _types())
    return max(now, defined)


def _here() -> str:
    return ray.get_runtime_context().get_node_id()


def _nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _types() -> list[dict[str, Any]]:
    """The types of nodes that the autoscaler may start."""
    path = Path(DEFINITION).expanduser()
    if not path.exists():
        return []
    types = yaml.safe_load(path.read_text()).get("available_node_types", {})
    return [{"resources": {}, **kind} for kind in types.values()]


def _holds(kind: dict[str, Any], resource: str) -> bool:
    return bool(kind.get("max_workers") and kind["resources"].get(resource))
