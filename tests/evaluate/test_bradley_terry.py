"""Bradley-Terry ratings, against values worked out by hand."""

import math

import pytest

from ochat_ray.evaluate.bradley_terry import (
    Battle,
    bradley_terry,
    style_difference,
    style_of,
)


def battles(first, second, wins, count=100, **fields):
    return [
        Battle(question=f"q{n}", first=first, second=second, share=float(n < wins), **fields)
        for n in range(count)
    ]


def ratings(found):
    return {one["model"]: one["score"] for one in found["ratings"]}


def test_three_wins_to_one_are_191_points():
    found = bradley_terry(battles("ours", "base", 75), anchor="base", seed=1)
    assert ratings(found)["ours"] == pytest.approx(1000 + 400 * math.log10(3), abs=0.1)
    one = found["ratings"][0]
    # The standard error of log odds is 1 / sqrt(100 * 0.75 * 0.25): 0.23, or 40 points.
    assert one["high"] - one["low"] == pytest.approx(2 * 1.96 * 40.1, rel=0.2)


def test_models_are_rated_through_others():
    """Odds multiply along a chain of comparisons: 3 and 3 are 9."""
    found = bradley_terry(
        battles("a", "b", 75) + battles("b", "c", 75), anchor="c", seed=1, rounds=50
    )
    assert ratings(found) == pytest.approx(
        {"a": 1000 + 400 * math.log10(9), "b": 1000 + 400 * math.log10(3), "c": 1000}, abs=0.2
    )
    assert [one["model"] for one in found["ratings"]] == ["a", "b", "c"]


def test_models_that_nothing_connects_are_named():
    found = bradley_terry(
        battles("a", "base", 50) + battles("x", "y", 50), anchor="base", seed=1, rounds=10
    )
    assert found["not_connected"] == ["x", "y"]
    assert set(ratings(found)) == {"a", "base"}


def test_a_model_that_wins_everything_has_a_finite_rating():
    found = bradley_terry(battles("a", "base", 100), anchor="base", seed=1, rounds=10)
    assert 1500 < ratings(found)["a"] < 4000


def test_votes_count_as_often_as_they_are():
    """A clear win with three votes and a loss with one are three wins of four."""
    won = battles("a", "base", 50, 50, votes=3)
    lost = [Battle(question=f"l{n}", first="a", second="base", share=0) for n in range(50)]
    found = bradley_terry(won + lost, anchor="base", seed=1, rounds=10)
    assert ratings(found)["a"] == pytest.approx(1000 + 400 * math.log10(3), abs=0.1)


def test_without_comparisons_there_is_no_rating():
    assert bradley_terry([], seed=1) is None


def test_style_is_counted_outside_of_code():
    text = "# Title\n\n- one\n- **two**\n1. three\n```\n# no header\n- no item\n```\n"
    assert style_of(text) == (len(text), 1, 3, 1)
    assert style_difference("abc", "a") == (0.5, 0.0, 0.0, 0.0)


def test_wins_by_length_alone_give_no_strength_under_control():
    """The longer answer wins four of five, and ours is the longer one four of five times."""
    found = []
    for n in range(200):
        longer = n % 5 != 0
        wins_by_length = (n // 5) % 5 != 0
        share = float(longer == wins_by_length)
        style = (0.5 if longer else -0.5, 0.0, 0.0, 0.0)
        found.append(Battle(question=f"q{n}", first="a", second="base", share=share, style=style))
    raw = [Battle(question=b.question, first="a", second="base", share=b.share) for b in found]
    assert ratings(bradley_terry(raw, anchor="base", seed=1, rounds=10))["a"] > 1100
    controlled = bradley_terry(found, anchor="base", seed=1, rounds=10)
    assert ratings(controlled)["a"] == pytest.approx(1000, abs=1)
    # Odds of four to one for a difference of 0.5; its standard deviation is 0.4.
    assert controlled["style"]["length"]["score"] == pytest.approx(
        math.log(4) * 0.4 / 0.5, abs=0.01
    )
