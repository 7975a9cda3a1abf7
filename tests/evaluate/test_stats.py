"""Intervals and biases, against values worked out another way."""

import numpy as np
import pytest

from ochat_ray.evaluate.bias import Judged, biases
from ochat_ray.evaluate.stats import Part, difference, estimate


def parts(values, denominator=1):
    return [Part(value, denominator) for value in values]


def test_the_value_is_the_ratio_of_the_sums_and_the_interval_is_the_means_own():
    values = np.random.default_rng(1).normal(5, 2, 400)
    found = estimate(parts(values), seed=7)
    assert found.value == pytest.approx(values.mean())
    # For a mean of 400 the bootstrap is close to the normal interval.
    half = 1.96 * values.std(ddof=1) / 20
    assert found.low == pytest.approx(found.value - half, abs=0.03)
    assert found.high == pytest.approx(found.value + half, abs=0.03)


def test_questions_that_were_not_judged_count_nowhere():
    found = estimate([Part(8, 10), Part(0, 0), Part(6, 10)], seed=1)
    assert found.value == pytest.approx(0.7)
    assert 0.6 <= found.low <= found.high <= 0.8
    assert estimate([Part(0, 0)], seed=1) is None


def test_the_seed_repeats_an_interval():
    some = parts([1, 2, 3, 9])
    assert estimate(some, seed=3) == estimate(some, seed=3)
    assert estimate(some, seed=3, rounds=100) != estimate(some, seed=4, rounds=100)


def test_a_difference_is_paired():
    # Questions differ much, the models by 0.1 on each: the difference is sure.
    base = np.random.default_rng(2).uniform(0, 10, 50)
    found = difference(parts(base + 0.1), parts(base), seed=5)
    assert found.value == pytest.approx(0.1)
    assert found.low == pytest.approx(0.1)
    assert found.high == pytest.approx(0.1)
    one = estimate(parts(base), seed=5)
    assert one.high - one.low > 1


def judged(pair, model_first, first, second, lengths=(1, 1)):
    return Judged(
        pair=(pair,),
        model_first=model_first,
        first=first,
        second=second,
        first_length=lengths[0],
        second_length=lengths[1],
    )


def test_a_judge_that_always_takes_the_first_changes_with_the_order():
    found = biases([judged(1, True, 9, 5), judged(1, False, 9, 5)])
    assert found.order_changes_verdict == 1
    assert found.first_minus_second == 4
    assert found.longer_preferred is None


def test_a_judge_that_sees_only_the_answers_does_not():
    found = biases([judged(1, True, 9, 5), judged(1, False, 5, 9), judged(2, True, 9, 5)])
    assert found.order_changes_verdict == 0  # of the one pair that was judged both ways
    assert found.first_minus_second == pytest.approx(4 / 3)


def test_the_longer_answer_is_counted_where_there_is_one_and_a_preference():
    found = biases(
        [
            judged(1, True, 9, 5, (10, 2)),
            judged(2, True, 5, 9, (10, 2)),
            judged(3, True, 5, 9, (2, 10)),
            judged(4, True, 7, 7, (2, 10)),
            judged(5, True, 9, 5, (3, 3)),
        ]
    )
    assert found.longer_preferred == pytest.approx(2 / 3)


def test_nothing_judged_tells_nothing():
    none = biases([])
    assert none.order_changes_verdict is none.first_minus_second is none.longer_preferred is None
