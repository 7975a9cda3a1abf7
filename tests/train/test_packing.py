"""Plans: every conversation once, every rank alike, packs full, ranks balanced."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ochat_ray.errors import UserError
from ochat_ray.train.packing import WINDOW, plan

PLANS = st.fixed_dictionaries(
    {
        "lengths": st.lists(st.integers(1, 50), max_size=60),
        "world_size": st.integers(1, 5),
        "sequences_per_step": st.one_of(st.none(), st.integers(1, 9)),
        "seed": st.integers(0, 3),
        "epoch": st.integers(0, 3),
    }
)


def indices(steps):
    return [i for step in steps for packs in step for pack in packs for i in pack]


@given(PLANS)
def test_invariants(case):
    steps = plan(max_tokens=50, **case)
    lengths, world_size = case["lengths"], case["world_size"]
    assert sorted(indices(steps)) == list(range(len(lengths)))
    for number, step in enumerate(steps):
        assert len(step) == world_size
        assert len({len(packs) for packs in step}) == 1
        assert all(sum(lengths[i] for i in pack) <= 50 for packs in step for pack in packs)
        if case["sequences_per_step"]:
            count = sum(len(pack) for packs in step for pack in packs)
            expected = case["sequences_per_step"]
            assert count == expected or (number == len(steps) - 1 and 0 < count < expected)


def test_the_plan_depends_on_seed_and_epoch_alone():
    lengths = list(range(1, 40))
    arguments = {"world_size": 2, "max_tokens": 64}
    one = plan(lengths, **arguments, seed=1, epoch=0)
    assert plan(np.array(lengths), **arguments, seed=1, epoch=0) == one
    assert plan(lengths, **arguments, seed=1, epoch=1) != one
    assert plan(lengths, **arguments, seed=2, epoch=0) != one


def test_three_packs_that_fit_exactly():
    steps = plan([6, 4, 7, 3, 5, 5], world_size=1, max_tokens=10, seed=0, epoch=0)
    packs = sorted(sorted(pack) for step in steps for packs in step for pack in packs)
    assert packs == [[0, 1], [2, 3], [4, 5]]


def test_packs_are_full_and_steps_are_not_sorted_by_length():
    rng = np.random.default_rng(0)
    lengths = np.minimum(rng.lognormal(6.8, 0.9, 3 * WINDOW // 2).astype(int) + 1, 2048)
    steps = plan(lengths, world_size=8, max_tokens=8192, seed=0, epoch=0)
    assert Counter(indices(steps)) == Counter(range(len(lengths)))
    fill = [
        sum(int(lengths[i]) for packs in s for pack in packs for i in pack) / (8 * 8192)
        for s in steps[:-1]
    ]
    assert np.mean(fill) > 0.997
    counts = [sum(len(pack) for packs in step for pack in packs) for step in steps[:-1]]
    halves = np.mean(counts[: len(counts) // 2]), np.mean(counts[len(counts) // 2 :])
    assert abs(halves[0] - halves[1]) < 0.2 * halves[0]


def test_ranks_are_balanced():
    rng = np.random.default_rng(0)
    lengths = np.minimum(rng.lognormal(6.8, 0.9, 4096).astype(int) + 1, 2048)
    steps = plan(lengths, world_size=8, max_tokens=8192, sequences_per_step=128, seed=0, epoch=0)
    balance = []
    for step in steps:
        loads = [sum(int(lengths[i]) for pack in packs for i in pack) for packs in step]
        balance.append(np.mean(loads) / max(loads))
    assert np.mean(balance) > 0.98


def test_the_july_2023_run_is_240_steps():
    lengths = [1] * 6144
    steps = plan(lengths, world_size=8, max_tokens=8192, sequences_per_step=128, seed=0, epoch=0)
    assert 5 * len(steps) == 240


def test_more_workers_than_conversations_leaves_empty_packs():
    (step,) = plan([3, 4], world_size=4, max_tokens=10, seed=0, epoch=0)
    assert sorted(map(len, (pack for packs in step for pack in packs))) == [0, 0, 1, 1]


@pytest.mark.parametrize(
    "wrong", [{"world_size": 0}, {"max_tokens": 0}, {"sequences_per_step": 0}, {"max_tokens": 4}]
)
def test_wrong_use_is_one_clear_line(wrong):
    arguments = {"world_size": 1, "max_tokens": 10, "seed": 0, "epoch": 0} | wrong
    with pytest.raises(UserError):
        plan([5], **arguments)
