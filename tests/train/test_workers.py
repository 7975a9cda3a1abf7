"""The number of workers where it follows from the hardware."""

from dataclasses import replace

import pytest

from ochat_ray.errors import UserError
from ochat_ray.recipes import RECIPES
from ochat_ray.train.config import TrainConfig
from ochat_ray.train.workers import with_workers

CHAT = TrainConfig.for_recipe("chat")


@pytest.fixture
def hardware(monkeypatch):
    """Set the GPUs of the cluster and of this machine; the list of what was asked."""
    asked = []

    def set_gpus(cluster, machine=0):
        def most(resource):
            asked.append(resource)
            return cluster

        monkeypatch.setattr(
            "ochat_ray.cluster.ray_session.join_or_start", lambda: asked.append("ray")
        )
        monkeypatch.setattr("ochat_ray.cluster.resources.most", most)
        monkeypatch.setattr("torch.cuda.device_count", lambda: machine)
        return asked

    return set_gpus


@pytest.mark.parametrize(("gpus", "workers"), [(0, 1), (1, 1), (8, 8)])
def test_chat_has_a_worker_per_gpu_of_the_cluster(hardware, gpus, workers):
    asked = hardware(gpus, machine=3)
    assert with_workers(CHAT, start_ray=True) == replace(CHAT, num_workers=workers)
    assert asked == ["ray", "GPU"]


def test_a_given_number_is_kept_and_nothing_is_asked(hardware):
    asked = hardware(8)
    config = replace(CHAT, num_workers=2)
    assert with_workers(config, start_ray=True) is config
    assert asked == []


def test_other_recipes_have_their_number():
    numbers = {name: TrainConfig.for_recipe(name).num_workers for name in RECIPES}
    assert numbers == {"demo": 2, "openchat": 8, "openchat_8192": 8, "opencoder": 8, "chat": 0}


def test_a_dry_run_counts_the_gpus_of_this_machine_and_starts_no_ray(hardware):
    asked = hardware(8, machine=2)
    assert with_workers(CHAT, start_ray=False).num_workers == 2
    assert asked == []


def test_a_dry_run_in_a_job_asks_its_cluster(hardware, monkeypatch):
    hardware(8, machine=2)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert with_workers(CHAT, start_ray=False).num_workers == 8


def test_an_option_that_the_number_does_not_fit_is_refused(hardware):
    hardware(2)
    config = replace(CHAT, num_workers_min=2)
    config.check()
    with pytest.raises(UserError, match="--num-workers-min 2 has no effect with --num-workers 2"):
        with_workers(config, start_ray=True)
