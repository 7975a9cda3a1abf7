"""Context manager that serves models temporarily."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import ray
from ray import serve
from ray.serve.context import _get_global_client  # Ray 2.60: no public one has the port

from ochat_ray.cluster import ray_session
from ochat_ray.cluster.local_cluster import free_port
from ochat_ray.serve import ServeArgs, app

CPUS = 0.5
"""CPUs per replica; two fit next to a model served on a machine with two cores."""


def served_on_gpu(models: Mapping[str, str]) -> AbstractContextManager[dict[str, str]]:
    """Serve models as `served` does, each on a GPU if that many are free."""
    return served(models, on_gpu=True)


@contextmanager
def served(models: Mapping[str, str], *, on_gpu: bool = False) -> Iterator[dict[str, str]]:
    """Serve model directories under their names and yield their base URLs by name.

    Uses the existing Ray cluster, in addition to what it already serves, or starts a local one.
    """
    alone = ray_session.would_start()
    own_ray = ray_session.join_or_start()
    own_serve = _get_global_client(raise_if_no_controller_running=False) is None
    if own_serve:
        serve.start(http_options={"host": "127.0.0.1", "port": free_port()})
    # Names may be paths, and an application's is part of URLs.
    applications = {name: "evaluate-" + re.sub(r"[^\w.-]+", "-", name) for name in models}
    gpus = _gpus(len(models)) if on_gpu else 0
    try:
        for name, directory in models.items():
            fields = {
                "model": directory, "served_model_name": name, "num_cpus": CPUS, "max_replicas": 1,
                "num_gpus": gpus, "ui": False,
            }  # fmt: skip
            serve.run(
                app(ServeArgs.model_validate(fields)),
                name=applications[name],
                route_prefix=f"/{applications[name]}",
            )
        client = _get_global_client()
        assert client is not None
        root = f"http://127.0.0.1:{client.http_config.port}"
        yield {name: f"{root}/{application}/v1" for name, application in applications.items()}
    finally:
        # A cluster of this process ends with all that it serves. There, Ray 2.60's serve.shutdown()
        # prints to standard output that its controller's last task failed.
        if not alone:
            for application in applications.values():
                serve.delete(application)
            if own_serve:
                serve.shutdown()
        if own_ray:
            ray.shutdown()


def _gpus(models: int) -> int:
    """Return the GPUs per model: one each if that many are free, otherwise none."""
    free = ray.available_resources().get("GPU", 0)
    if free >= models:
        return 1
    if ray.cluster_resources().get("GPU", 0):
        print("served on CPUs, since no GPU is free; that may be slow", file=sys.stderr)
    return 0
