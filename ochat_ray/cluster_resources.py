"""What a Ray cluster has, and what its autoscaler may add."""

from __future__ import annotations

from pathlib import Path

import ray
import yaml

DEFINITION = "~/ray_bootstrap_config.yaml"
"""Where `ray up` leaves the definition on the head, on which jobs' drivers run. Ray tells it
nowhere else."""


def most(resource: str) -> int:
    """How many "CPU" or "GPU" the cluster may have in all: nodes not yet started count, too."""
    return max(int(ray.cluster_resources().get(resource, 0)), _defined(resource))


def _defined(resource: str) -> int:
    path = Path(DEFINITION).expanduser()
    if not path.exists():
        return 0
    types = yaml.safe_load(path.read_text()).get("available_node_types", {})
    return sum(
        int(kind.get("max_workers", 0)) * int(kind.get("resources", {}).get(resource, 0))
        for kind in types.values()
    )
