"""Notice of preemption, as Ray Train hands it on."""

from types import SimpleNamespace

import pytest

from ochat_ray.train import preemption
from ochat_ray.train.preemption import PreemptionNotice


@pytest.fixture
def ray_train(monkeypatch):
    """A clock, the nodes to be taken away, and the number of times that Ray Train was asked."""
    state = SimpleNamespace(now=100.0, nodes=[], asked=0)

    def info():
        state.asked += 1
        return SimpleNamespace(preempted_node_ids=list(state.nodes)) if state.nodes else None

    monkeypatch.setattr(preemption.time, "monotonic", lambda: state.now)
    monkeypatch.setattr(preemption.ray.train, "get_preemption_info", info)
    return state


def test_each_node_is_reported_once(ray_train):
    notice, arrived = PreemptionNotice(lambda value: value), []
    for nodes in ([], ["a"], ["a"], ["a", "b"], ["b"], []):
        ray_train.now += 5
        ray_train.nodes = nodes
        arrived.append(notice.arrived())
    assert arrived == [False, True, False, True, False, False]


def test_ray_train_is_asked_every_five_seconds(ray_train):
    notice = PreemptionNotice(lambda value: value)
    ray_train.nodes = ["a"]
    for _ in range(40):
        ray_train.now += 0.5
        notice.arrived()
    assert ray_train.asked == 4


def test_the_first_worker_decides_when_all_ask(ray_train):
    """Otherwise one would wait for the others in Ray Train's barrier."""
    ray_train.nodes = ["a"]
    early = PreemptionNotice(lambda own: True)
    assert early.arrived()
    ray_train.now += 1000
    late = PreemptionNotice(lambda own: False)
    ray_train.now += 1000
    assert not late.arrived()
    assert ray_train.asked == 1
