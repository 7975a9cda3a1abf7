"""Which nodes of a cluster prepare runs on: those without GPUs, while there are any."""

import json
import time

import pytest
import ray
from ray.cluster_utils import Cluster

from ochat_ray.data import pipeline
from ochat_ray.data.config import PrepareConfig
from ochat_ray.errors import UserError

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def head():
    """A cluster of a head that takes no task."""
    ray.shutdown()  # the one that other files' tests share
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "num_gpus": 0, "include_dashboard": False},
    )
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def test_a_cluster_without_cpus_is_refused_at_once(head, tmp_path, tokenizer_directory):
    head.add_node(num_cpus=0, num_gpus=1)
    turns = [{"from": "human", "value": "question"}, {"from": "gpt", "value": "answer"}]
    (tmp_path / "in.json").write_text(json.dumps([{"id": "0", "conversations": turns}]))
    config = PrepareConfig(
        input=(str(tmp_path / "in.json"),),
        output=str(tmp_path / "out"),
        tokenizer=tokenizer_directory,
    )
    with pytest.raises(UserError, match="takes a CPU, and no node of this cluster has one"):
        pipeline.prepare(config)


def nodes_of_a_pass():
    """The nodes that do a pass of two tasks, which nodes of two CPUs have room for."""

    def where(_item):
        time.sleep(0.2)
        return {"node": ray.get_runtime_context().get_node_id()}

    items = [{"n": n} for n in range(2)]
    return {found["node"] for found in pipeline._map_summaries(items, pipeline._each(where))}


def test_nodes_with_gpus_are_left_alone_while_others_have_room(head):
    with_gpu = head.add_node(num_cpus=2, num_gpus=1)
    others = head.add_node(num_cpus=2)
    head.wait_for_nodes()
    assert nodes_of_a_pass() == {others.node_id}
    head.remove_node(others)
    while others.node_id in {node["NodeID"] for node in ray.nodes() if node["Alive"]}:
        time.sleep(0.1)
    assert nodes_of_a_pass() == {with_gpu.node_id}
