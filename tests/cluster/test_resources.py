"""What a cluster may become counts: nodes that it does not have yet are no reason to refuse."""

from pathlib import Path

import pytest

from ochat_ray.cluster import resources
from ochat_ray.cluster.resources import apart_from_gpus, most, room_for

ROOT = Path(__file__).parents[2]
HEAD = "node:__internal_head__"


def node(name, alive=True, **resources):
    return {"NodeID": name, "Alive": alive, "Resources": resources}


@pytest.fixture(autouse=True)
def no_definition(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)


@pytest.fixture
def nodes(monkeypatch):
    """A head of two CPUs, where this process is, and room for more."""
    found = [node("head", CPU=2.0, **{HEAD: 1.0})]
    monkeypatch.setattr(resources.ray, "nodes", lambda: found)
    monkeypatch.setattr(resources, "_own_node_id", lambda: "head")
    return found


@pytest.fixture
def definition(tmp_path):
    """The definition as `ray up` leaves it on the head."""
    path = tmp_path / "ray_bootstrap_config.yaml"
    path.write_text((ROOT / "cluster.yaml").read_text())
    return path


def test_a_ray_without_autoscaler_has_what_it_has(nodes):
    nodes.append(node("lost", alive=False, CPU=64.0))
    assert (most("CPU"), most("GPU")) == (2, 0)


@pytest.mark.usefixtures("nodes", "definition")
def test_nodes_that_an_autoscaler_may_start_count():
    # 8 nodes of 32 CPUs and 4 of 1; a node of 8 GPUs and 4 of 1.
    assert (most("CPU"), most("GPU")) == (260, 12)


@pytest.mark.usefixtures("nodes")
def test_machines_of_one_s_own_say_what_they_have_themselves(definition):
    types = "available_node_types: {local.cluster.node: {resources: {}, max_workers: 2}}"
    definition.write_text(types)
    assert (most("CPU"), most("GPU")) == (2, 0)


def test_a_replica_needs_all_that_it_needs_of_one_node(nodes):
    nodes += [node("a", CPU=8.0, GPU=2.0), node("b", CPU=1.0, GPU=4.0), node("c", CPU=64.0)]
    assert room_for({"CPU": 1, "GPU": 1}) == 3
    assert room_for({"CPU": 2, "GPU": 2}) == 1
    assert room_for({"CPU": 1, "GPU": 8}) == 0
    assert room_for({"CPU": 0.5, "GPU": 0}) == 4 + 16 + 2 + 128


@pytest.mark.usefixtures("nodes", "definition")
def test_replicas_may_wait_for_the_nodes_of_the_definition():
    assert room_for({"CPU": 1, "GPU": 1}) == 4
    assert room_for({"CPU": 1, "GPU": 2}) == 0


@pytest.mark.usefixtures("nodes")
def test_nobody_is_refused_where_nobody_can_tell(monkeypatch):
    assert room_for({"GPU": 1}) == 0
    monkeypatch.setattr(resources, "_own_node_id", lambda: "a worker")
    assert room_for({"GPU": 1}) == float("inf")
    monkeypatch.setattr(resources, "_own_node_id", lambda: "head")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert room_for({"GPU": 1}) == float("inf")


def test_tasks_are_kept_off_gpus_while_other_nodes_will_do(nodes):
    assert apart_from_gpus() == {}
    nodes += [node("b", CPU=8.0, GPU=2.0), node("a", CPU=8.0, GPU=2.0)]
    assert apart_from_gpus() == {
        "label_selector": {"ray.io/node-id": "!in(a,b)"},
        "fallback_strategy": [{"label_selector": {}}],
    }


@pytest.mark.usefixtures("definition")
def test_they_wait_for_the_definition_s_own_nodes(nodes):
    nodes.append(node("serve", CPU=1.0, GPU=1.0))
    assert apart_from_gpus() == {"label_selector": {"ray.io/node-id": "!in(serve)"}}
