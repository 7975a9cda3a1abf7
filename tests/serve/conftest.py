"""Ray Serve on the Ray that all tests share, with its proxy on a free port of loopback."""

from __future__ import annotations

import socket

import pytest


@pytest.fixture(scope="session")
def serve_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def cluster(shared_ray, serve_port):
    """The URL of Serve's proxy; the module's applications are deleted at its end."""
    from ray import serve

    shared_ray()
    serve.start(http_options={"host": "127.0.0.1", "port": serve_port})
    yield f"http://127.0.0.1:{serve_port}"
    for name in serve.status().applications:
        serve.delete(name)
