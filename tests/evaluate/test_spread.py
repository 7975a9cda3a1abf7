"""Calls from every node of a cluster, and a node that is lost under them."""

import asyncio
import os
import signal
import threading
import time
from collections import Counter

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util.state import list_actors

from ochat_ray.errors import UserError
from ochat_ray.evaluate.client import CallFailedError, Client
from ochat_ray.evaluate.spread import SpreadClient, connect
from ochat_ray.local_cluster import free_port
from tests.evaluate.endpoint import Endpoint, refusal

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

CALLS = 120


@pytest.fixture(scope="module")
def two_nodes():
    ray.shutdown()  # the one that other files' tests share
    # list_actors asks the dashboard, which gives up where another one has its port.
    head = {"num_cpus": 1, "include_dashboard": True, "dashboard_port": free_port()}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    second = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster, second
    ray.shutdown()
    cluster.shutdown()


def echo(body):
    time.sleep(0.02)
    return f"answer to {body['n']}"


def asked(endpoint, bodies, expected=1, meanwhile=lambda: None, **options):
    """The replies, and the nodes that the callers were on at first: so many are waited for."""

    async def work():
        async with SpreadClient(endpoint.url, "key", first_pause_s=0.01, **options) as client:
            first = await client.chat({"n": -1})
            assert first.text == "answer to -1"
            alive = [("state", "=", "ALIVE"), ("class_name", "=", "_Caller")]
            while len(nodes := {actor.node_id for actor in list_actors(filters=alive)}) < expected:
                await asyncio.sleep(0.1)
            thread = threading.Thread(target=meanwhile)
            thread.start()
            replies = await asyncio.gather(
                *[client.chat(body) for body in bodies], return_exceptions=True
            )
            thread.join()
            return replies, nodes

    return asyncio.run(work())


def test_errors_are_the_client_s_own(two_nodes):
    refused = {1: refusal(400, "not this"), 2: refusal(401, "who?")}
    endpoint = Endpoint(echo, lambda body, before: refused.get(body["n"]))
    with endpoint.serving():
        (bad, unknown, good), _ = asked(endpoint, [{"n": n} for n in (1, 2, 3)])
    assert (type(bad), str(bad)) == (CallFailedError, "400 not this")
    assert isinstance(unknown, UserError)
    assert "refuses the key: 401 who?" in str(unknown)
    assert good.text == "answer to 3"


def test_no_more_are_under_way_than_allowed(two_nodes):
    endpoint = Endpoint(echo)
    with endpoint.serving():
        asked(endpoint, [{"n": n} for n in range(30)], max_concurrency=3)
    assert endpoint.most_at_once <= 3


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]"])
def test_loopback_is_asked_from_here(host):
    assert isinstance(connect(f"http://{host}:8000/v1", ""), Client)


def test_callers_that_are_all_gone_are_made_again(two_nodes):
    def end_callers():
        for actor in list_actors(filters=[("state", "=", "ALIVE"), ("class_name", "=", "_Caller")]):
            os.kill(actor.pid, signal.SIGKILL)

    endpoint = Endpoint(echo)
    with endpoint.serving():
        replies, _ = asked(
            endpoint, [{"n": n} for n in range(60)], 2, end_callers, max_concurrency=2
        )
    assert [reply.text for reply in replies] == [f"answer to {n}" for n in range(60)]


def test_a_node_that_is_lost_costs_no_answer(two_nodes):
    cluster, second = two_nodes
    endpoint = Endpoint(echo)

    def lose():
        while len(endpoint.asked) < CALLS // 4:
            time.sleep(0.005)
        cluster.remove_node(second, allow_graceful=False)

    with endpoint.serving():
        replies, nodes = asked(
            endpoint, [{"n": n} for n in range(CALLS)], 2, lose, max_concurrency=4
        )
    assert len(nodes) == 2
    assert [reply.text for reply in replies] == [f"answer to {n}" for n in range(CALLS)]
    # Only what was under way on the lost node was asked again.
    again = Counter(body["n"] for body in endpoint.asked)
    assert sum(count - 1 for count in again.values()) <= 2
