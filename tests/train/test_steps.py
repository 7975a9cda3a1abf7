"""Steps of a run: number, schedule, and independence of the number of workers."""

import numpy as np
import pytest

from ochat_ray.train.config import TrainConfig
from ochat_ray.train.steps import Steps, forward_passes

LENGTHS = np.random.default_rng(0).integers(1, 60, 50)


def config(**changes):
    return TrainConfig(**{"epochs": 2, "sequences_per_step": 8, "max_tokens": 64} | changes)


def summary(step):
    return step.number, step.epoch, step.rate, sorted(step.conversations)


def test_the_july_2023_run_is_240_steps_with_8_of_warm_up():
    lengths = np.full(6144, 1550)
    recipe = TrainConfig.for_recipe("openchat")
    steps = Steps(recipe, lengths)
    assert steps.per_epoch == [48] * 5
    rates = [step.rate for step in steps.after(0, 8)]
    assert len(rates) == len(steps) == 240
    assert rates[:8] == [pytest.approx(n / 8) for n in range(1, 9)]
    assert rates[8] < 1.0
    assert (recipe.learning_rate, recipe.betas, recipe.eps) == (2e-5, (0.9, 0.999), 1e-8)
    assert (recipe.weight_decay, recipe.max_grad_norm, recipe.seed) == (0.0, 1.0, 0)


@pytest.mark.parametrize("size", [{}, {"sequences_per_step": None, "tokens_per_step": 256}])
def test_a_resumed_run_has_the_same_steps_for_any_number_of_workers(size):
    steps = Steps(config(**size), LENGTHS)
    whole = [summary(step) for step in steps.after(0, 2)]
    assert [number for number, *_ in whole] == list(range(1, len(steps) + 1))
    for done in range(len(steps) + 1):
        for world_size in (1, 2, 3):
            rest = list(steps.after(done, world_size))
            assert [summary(step) for step in rest] == whole[done:]
            assert all(len(step.packs) == world_size for step in rest)


def test_every_conversation_is_used_once_per_epoch():
    steps = list(Steps(config(), LENGTHS).after(0, 2))
    for epoch in (0, 1):
        used = [i for step in steps if step.epoch == epoch for i in step.conversations]
        assert sorted(used) == list(range(50))


def test_epochs_end_with_an_evaluation_and_a_checkpoint():
    steps = list(Steps(config(eval_every=4, checkpoint_every=3), LENGTHS).after(0, 2))
    # 50 conversations are 7 steps of 8, the last of 2.
    assert [s.number for s in steps if s.evaluates] == [4, 7, 8, 12, 14]
    assert [s.number for s in steps if s.saves] == [3, 6, 7, 9, 12, 14]


def test_max_steps_ends_a_run_in_the_middle_of_an_epoch():
    steps = Steps(config(epochs=100, max_steps=9), LENGTHS)
    assert steps.per_epoch == [7, 2]
    last = list(steps.after(0, 2))[-1]
    assert (last.number, last.evaluates, last.saves) == (9, True, True)


def test_a_conversation_beyond_the_context_has_its_own_pack():
    """Dynamic rotary scaling would affect the others of its pack."""
    steps = Steps(config(), LENGTHS, min_length_for_own_pack=40)
    packs = [pack for step in steps.after(0, 2) for packs in step.packs for pack in packs]
    for pack in packs:
        assert len(pack) == 1 or all(LENGTHS[i] < 40 for i in pack)


def test_the_first_rate_of_2023_is_0():
    rates = [s.rate for s in Steps(config(loss="openchat-2023"), LENGTHS).after(0, 1)]
    # ceil(3% of 14) = 1 step of warm-up: 0, then the peak.
    assert rates[:2] == [0.0, 1.0]


def test_a_forward_pass_per_pack_or_per_conversation():
    packs = [[[4, 0], [2]], [[1], []]]
    assert forward_passes(packs, 0, packed=True) == [([4, 0], 0), ([2], 1)]
    assert forward_passes(packs, 1, packed=True) == [([1], 0), ([], 1)]
    assert forward_passes(packs, 0, packed=False) == [([4], 0), ([0], 0), ([2], 1)]
    # As many as the other worker has; otherwise ZeRO-3 would wait forever.
    assert forward_passes(packs, 1, packed=False) == [([1], 0), ([], None), ([], None)]
    assert forward_passes([[[]], [[]]], 0, packed=False) == [([], None)]


def test_a_schedule_may_start_in_the_middle_of_a_run():
    """As if the remaining steps were a separate run."""
    linear = {"schedule": "linear", "warmup_ratio": 0.3}
    rates = [s.rate for s in Steps(config(**linear), LENGTHS, schedule_from=4).after(4, 1)]
    # Ten of fourteen remain: three of warm-up, then seven of eighths.
    assert rates == pytest.approx([1 / 3, 2 / 3, 1, *(1 - n / 8 for n in range(1, 8))])
