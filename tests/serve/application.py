"""Applications on the local Ray of `cluster`, and what they hold."""

from __future__ import annotations

import time
from contextlib import contextmanager

import httpx


def deploy(model_directory, name="app", **args):
    from ray import serve

    from ochat_ray.serve import ServeArgs, app

    arguments = {
        "model": str(model_directory), "context_length": 2048, "max_replicas": 1,
        "dtype": "float32", "engine": "transformers", "ui": False, **args,
    }  # fmt: skip
    serve.run(app(ServeArgs.model_validate(arguments)), name=name, route_prefix=f"/{name}")


@contextmanager
def deployed(model_directory, name, **args):
    """An application for the length of a block, of half a CPU and without a model."""
    from ray import serve

    deploy(model_directory, name, **{"num_cpus": 0.5, "engine": "scripted", **args})
    try:
        yield
    finally:
        serve.delete(name)


def running(url, key=""):
    """Requests that the engines of an application hold, by their own count."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    rows = httpx.get(f"{url}/metrics", headers=headers, timeout=30).text.splitlines()
    held = ("ochat_ray_running_requests{", "ochat_ray_waiting_requests{")
    found = [float(row.split()[-1]) for row in rows if row.startswith(held)]
    assert found, "no replica said what it holds"
    return sum(found)


def replicas(name="app"):
    """Model replicas that run."""
    from ray import serve

    states = serve.status().applications[name].deployments["Model"].replica_states
    return states.get("RUNNING", 0)


def wait_until(condition, timeout_s=20.0):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
