"""A host is lost and none comes: training goes on with the workers that are left."""

import threading
import time

import pytest
import ray
from ray.cluster_utils import Cluster

from ochat_ray.train.launch import train
from tests.train.test_faults import STEPS, configured, lines  # noqa: F401 - a fixture

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]


def test_training_goes_on_smaller_when_a_host_is_lost(configured, tmp_path):  # noqa: F811
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    second = cluster.add_node(num_cpus=1)
    try:
        ray.init(address=cluster.address, log_to_driver=False)
        config = configured(tmp_path / "model", num_workers_min=1)

        def lose():
            while not any(m["step"] >= 16 for m in lines(config.output)):
                time.sleep(0.005)
            cluster.remove_node(second, allow_graceful=False)

        thread = threading.Thread(target=lose, daemon=True)
        thread.start()
        result = train(config)
        assert not thread.is_alive()
    finally:
        ray.shutdown()
        cluster.shutdown()
    steps = [m for m in lines(config.output) if "loss" in m]
    assert [m["step"] for m in steps] == list(range(1, STEPS + 1))
    assert [m["world_size"] for m in steps[:7]] == [2] * 7
    assert result["world_size"] == steps[-1]["world_size"] == 1
    assert result["eval_after"]["loss"] < result["eval_before"]["loss"]
