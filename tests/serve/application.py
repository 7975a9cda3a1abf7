"""Applications on the local Ray of `cluster`, and what they hold."""

from __future__ import annotations

import time


def deploy(model_directory, name="app", **args):
    from ray import serve

    from ochat_ray.serve import ServeArgs, app

    arguments = {
        "model": str(model_directory), "context_length": 2048, "max_replicas": 1,
        "dtype": "float32", "engine": "transformers", "ui": False, **args,
    }  # fmt: skip
    serve.run(app(ServeArgs.model_validate(arguments)), name=name, route_prefix=f"/{name}")


def running(name="app"):
    """Requests that the engines of an application hold."""
    from ray import serve

    handle = serve.get_deployment_handle("Model", name)
    loads = handle.broadcast("load").results(timeout_s=10)
    return sum(load.running + load.waiting for _, load in loads)


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
