"""Ray Serve on the Ray that all tests share, with its proxy on a free port of loopback."""

from __future__ import annotations

import pytest

from ochat_ray.cluster.local_cluster import free_port


@pytest.fixture(scope="session")
def serve_port():
    return free_port()


@pytest.fixture(scope="package")
def started_serve(shared_ray, serve_port):
    """Serve until the last test here that needs it: without applications it is still busy."""
    from ray import serve

    shared_ray()
    serve.start(http_options={"host": "127.0.0.1", "port": serve_port})
    yield
    shared_ray()
    serve.shutdown()


@pytest.fixture(scope="module")
def cluster(shared_ray, serve_port, started_serve):
    """The URL of Serve's proxy; the module's applications are deleted at its end."""
    from ray import serve

    shared_ray()
    yield f"http://127.0.0.1:{serve_port}"
    for name in serve.status().applications:
        serve.delete(name)
