"""Models that are served as long as a block lasts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import ray
from ray import serve

from ochat_ray.local_cluster import SERVE_PORT
from ochat_ray.serve import ServeArgs, app

CPUS = 0.5
"""Of a replica: two find room beside a model that is served on a machine of two cores."""


@contextmanager
def served(models: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Serve model directories under their names; the base URLs by name.

    On the Ray that there is, beside whatever it serves, or on one of this process's own.
    """
    own = not ray.is_initialized()
    if own:
        ray.init(log_to_driver=False, include_dashboard=False)
    before = set(serve.status().applications)
    applications = {name: f"evaluate-{name}" for name in models}
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": SERVE_PORT})
        for name, directory in models.items():
            fields = {
                "model": directory, "served_model_name": name, "num_cpus": CPUS, "max_replicas": 1,
                "ui": False,
            }  # fmt: skip
            serve.run(
                app(ServeArgs.model_validate(fields)),
                name=applications[name],
                route_prefix=f"/{applications[name]}",
            )
        yield {n: f"http://127.0.0.1:{SERVE_PORT}/{a}/v1" for n, a in applications.items()}
    finally:
        for application in applications.values():
            serve.delete(application)
        if not before:
            serve.shutdown()
        if own:
            ray.shutdown()
