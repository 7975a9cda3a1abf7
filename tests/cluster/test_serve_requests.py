"""Counts of Ray Serve's requests, from metrics in the form in which Ray 2.60 exports them."""

from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from ochat_ray.cluster.serve_requests import count_requests, read_requests, samples_of

SERVE = {
    "proxies": {"node": {"node_ip": "127.0.0.1", "actor_id": "p1"}},
    "applications": {
        "chat": {
            "deployments": {
                "Ingress": {
                    "replicas": [{"node_ip": "127.0.0.1", "actor_id": "a1", "replica_id": "i1"}]
                },
                "Model": {
                    "replicas": [{"node_ip": "127.0.0.2", "actor_id": "a2", "replica_id": "m1"}]
                },
            }
        }
    },
}

METRICS = """\
# HELP ray_tasks Current number of tasks
# TYPE ray_tasks gauge
ray_tasks{Component="core_worker",State="RUNNING"} 5.0
# TYPE ray_serve_replica_processing_queries gauge
ray_serve_replica_processing_queries{application="chat",deployment="Ingress",replica="i1"} 7.0
ray_serve_replica_processing_queries{application="chat",deployment="Ingress",replica="dead"} 9.0
# TYPE ray_serve_deployment_queued_queries gauge
ray_serve_deployment_queued_queries{actor_id="p1",application="chat",deployment="Ingress",handle="x"} 1.0
ray_serve_deployment_queued_queries{actor_id="a1",application="chat",deployment="Model",handle="y"} 4.0
ray_serve_deployment_queued_queries{actor_id="a1",application="chat",deployment="Model",handle="z"} 1.0
ray_serve_deployment_queued_queries{actor_id="dead",application="chat",deployment="Model",handle="y"} 8.0
"""  # noqa: E501
OTHER_NODE = (
    'ray_serve_replica_processing_queries{application="chat",deployment="Model",replica="m1"} 2.0\n'
)


def test_requests_of_living_processes_are_counted_over_all_nodes():
    found = count_requests(SERVE, samples_of(METRICS) + samples_of(OTHER_NODE))
    assert found.running == {("chat", "Ingress", "i1"): 7, ("chat", "Model", "m1"): 2}
    assert found.waiting == {("chat", "Ingress"): 1, ("chat", "Model"): 5}


@contextmanager
def exporting(text):
    """Export metrics on a port of loopback, and yield the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def test_nodes_of_serve_are_read_and_those_that_do_not_answer_are_named():
    with exporting(METRICS) as target:
        found = read_requests(SERVE, [target, "127.0.0.1:1", "127.0.0.2:1", "192.0.2.9:1"])
    assert found.running == {("chat", "Ingress", "i1"): 7}
    assert found.unreachable == ("127.0.0.2",)


def test_a_node_with_something_else_on_its_port_is_unreachable():
    with exporting('ray_serve_replica_processing_queries{application="a" 1\n') as target:
        assert read_requests(SERVE, [target]).unreachable == ("127.0.0.1", "127.0.0.2")


def test_without_serve_nothing_is_read():
    found = read_requests({}, ["192.0.2.9:1"])
    assert (found.running, found.waiting, found.unreachable) == ({}, {}, ())
