"""Learning-rate schedules, computed by hand."""

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
def test_a_short_run_has_a_rate_above_0_in_every_step(total):
    assert all(0 < value <= 1 for value in rates(total))


def named(schedule, total_steps, **options):
    return [
        rate(step, total_steps=total_steps, warmup_ratio=0.2, schedule=schedule, **options)
        for step in range(1, total_steps + 1)
    ]


def test_linear_falls_by_equal_amounts():
    # Two steps of warm-up, then eight of ninths, as the cosine: the step after the last has 0.
    assert named("linear", 10) == pytest.approx([0.5, 1.0, *(1 - n / 9 for n in range(1, 9))])


def test_constant_stays_at_the_peak_after_its_warm_up():
    assert named("constant", 10) == [0.5, *[1.0] * 9]


def test_wsd_is_stable_and_decays_in_its_last_steps():
    # Three of ten steps decay, by quarters.
    expected = [0.5, *[1.0] * 6, 0.75, 0.5, 0.25]
    assert named("wsd", 10, decay_ratio=0.3) == pytest.approx(expected)
    assert named("wsd", 10, decay_ratio=1.0) == pytest.approx(named("linear", 10))


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd"])
def test_a_minimum_is_where_the_schedule_ends(schedule):
    falls = named(schedule, 1000)
    kept = named(schedule, 1000, min_ratio=0.1)
    warmup = 200
    assert kept[:warmup] == falls[:warmup]
    assert kept[warmup:] == pytest.approx([0.1 + 0.9 * share for share in falls[warmup:]])
    assert kept[-1] == pytest.approx(0.1, abs=0.01)
