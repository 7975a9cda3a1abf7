"""Which nodes of a cluster prepare runs on: those without GPUs, while there are any."""

import json
import time

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util.state import list_tasks

from ochat_ray.data import pipeline
from ochat_ray.data.config import PrepareConfig
from ochat_ray.errors import UserError

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

FILES = 12


@pytest.fixture
def head():
    """A cluster of a head that takes no task."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "num_gpus": 0})
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def prepare(tmp_path, tokenizer_directory):
    """Prepares files of a task each under another name; the nodes that its tasks were on."""
    (tmp_path / "in").mkdir()
    for number in range(FILES):
        turns = [{"from": "human", "value": f"question {number}"}, {"from": "gpt", "value": "so"}]
        line = json.dumps({"id": str(number), "conversations": turns})
        (tmp_path / "in" / f"{number}.jsonl").write_text(line + "\n")

    def run(name):
        started = 1000 * time.time()
        config = PrepareConfig(
            input=(str(tmp_path / "in"),), output=str(tmp_path / name), keep_model="any",
            tokenizer=tokenizer_directory, eval_ratio=0.3,
        )  # fmt: skip
        assert pipeline.prepare(config)["counts"]["kept"] == FILES
        return {task.node_id for task in data_tasks() if task.start_time_ms >= started}

    return run


def data_tasks():
    """Ray Data's tasks, once Ray knows when each began: it hears of that in pieces."""
    while True:
        finished = list_tasks(filters=[("state", "=", "FINISHED")], limit=1000, detail=True)
        tasks = [task for task in finished if task.name.startswith("MapBatches")]
        if all(task.start_time_ms for task in tasks):
            return tasks
        time.sleep(0.5)


def test_a_cluster_without_cpus_is_refused_at_once(head, prepare):
    head.add_node(num_cpus=0, num_gpus=1)
    with pytest.raises(UserError, match="takes a CPU, and no node of this cluster has one"):
        prepare("out")


def test_nodes_with_gpus_are_left_alone_while_others_will_do(head, prepare):
    with_gpu = head.add_node(num_cpus=2, num_gpus=1)
    others = head.add_node(num_cpus=2)
    head.wait_for_nodes()
    assert prepare("apart") == {others.node_id}
    head.remove_node(others)
    while sum(node["Alive"] for node in ray.nodes()) > 2:
        time.sleep(0.1)
    assert prepare("together") == {with_gpu.node_id}
