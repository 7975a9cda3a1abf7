"""What a cluster may become counts: GPUs that no node has yet are no reason to refuse."""

from pathlib import Path

import pytest

from ochat_ray import cluster_resources
from ochat_ray.cluster_resources import most

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def two_cpus(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(cluster_resources.ray, "cluster_resources", lambda: {"CPU": 2.0})


def test_a_ray_without_autoscaler_has_what_it_has():
    assert (most("CPU"), most("GPU")) == (2, 0)


def test_nodes_that_an_autoscaler_may_start_count(tmp_path):
    (tmp_path / "ray_bootstrap_config.yaml").write_text((ROOT / "cluster.yaml").read_text())
    # 8 nodes of 32 CPUs and 4 of 1; a node of 8 GPUs and 4 of 1.
    assert (most("CPU"), most("GPU")) == (260, 12)


def test_machines_of_one_s_own_say_what_they_have_themselves(tmp_path):
    types = "available_node_types: {local.cluster.node: {resources: {}, max_workers: 2}}"
    (tmp_path / "ray_bootstrap_config.yaml").write_text(types)
    assert (most("CPU"), most("GPU")) == (2, 0)
