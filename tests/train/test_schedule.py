"""The learning rate of July 2023, by hand."""

import math

import pytest

from ochat_ray.train.schedule import rate


def rates(total_steps, warmup_ratio=0.03):
    return [
        rate(step, total_steps=total_steps, warmup_ratio=warmup_ratio)
        for step in range(1, total_steps + 1)
    ]


def test_240_steps_warm_up_in_8():
    values = rates(240)
    assert values[:8] == [pytest.approx(i / 8) for i in range(1, 9)]
    assert values[8] < 1.0


def test_the_cosine_is_half_way_down_in_its_middle_and_ends_near_0():
    values = rates(9, warmup_ratio=0.0)
    assert values[4] == pytest.approx(0.5)
    assert values[-1] == pytest.approx(0.5 * (1 + math.cos(0.9 * math.pi)))
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("total", [1, 2, 3])
def test_a_short_run_learns_in_every_step(total):
    assert all(0 < value <= 1 for value in rates(total))
