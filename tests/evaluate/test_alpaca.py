"""AlpacaEval's numbers, worked out by hand."""

import math

import pytest

from ochat_ray.evaluate.alpaca import average_length, win_rate


def test_wins_losses_and_draws():
    found = win_rate([2, 2, 1, 1.5, 0, None, math.nan])
    # Shares 1, 1, 0, 0.5, 0.5: mean 0.6, squared deviations 0.16 + 0.16 + 0.36 + 0.01 + 0.01.
    assert found["win_rate"] == pytest.approx(60)
    assert found["standard_error"] == pytest.approx(100 * math.sqrt(0.7 / 4) / math.sqrt(5))
    counts = [found[name] for name in ("n_wins", "n_wins_base", "n_draws", "n_total")]
    assert counts == [2, 1, 2, 5]
    assert found["discrete_win_rate"] == pytest.approx(60)


def test_weighted_preferences_count_by_their_weight_and_discretely_as_wins():
    found = win_rate([1.9, 1.6, 1.2])
    assert found["win_rate"] == pytest.approx(100 * (0.9 + 0.6 + 0.2) / 3)
    assert found["discrete_win_rate"] == pytest.approx(200 / 3)
    assert (found["n_wins"], found["n_wins_base"], found["n_draws"]) == (2, 1, 0)


def test_what_is_no_preference_counts_nowhere():
    assert win_rate([3, -1, 0.5, 2])["n_total"] == 1
    assert win_rate([2])["standard_error"] is None
    none = win_rate([None])
    assert (none["win_rate"], none["discrete_win_rate"], none["n_total"]) == (None, None, 0)


def test_lengths_are_in_characters_and_rounded_down():
    assert average_length(["abc", "é🙂", "abc"]) == 2
    assert average_length([]) == 0
