"""Scores, ratings and verdicts out of a judge's words."""

import pytest

from ochat_ray.evaluate.mt_bench import outcome, parse_rating, parse_verdict
from ochat_ray.evaluate.vicuna import parse_scores


@pytest.mark.parametrize(
    ("text", "scores"),
    [
        ("Both are fine.\n8 9", (8, 9)),
        ("8, 9", (8, 9)),
        ("8,9.5\n\n", (8, 9.5)),
        ("[7, 8]\nThat is all.", (7, 8)),
        ("The scores are [7, 8.5].", (7, 8.5)),
        ("1 2\nbut in the end\n[7, 8]", (7, 8)),  # the last line that has a pair
        ("[1, 2]\n7 8\n", (7, 8)),
        ("[1, 2, 3]\n[[7, 8]]", (7, 8)),
        ("0 10", (0, 10)),
        ("[\n\n2\n\n,\n3\n]", (2, 3)),  # what a schema leaves room for
    ],
)
def test_scores_are_read_from_the_end(text, scores):
    assert parse_scores(text) == scores


@pytest.mark.parametrize(
    "text",
    [
        "", "no scores", "8", "8 9 10", "[8]", "[8, 9, 10]", "8 nine", '["8", "9"]', "[true, 9]",
        "11 10", "-1 5", "nan 5", "5 inf", "[NaN, 5]", "[5, Infinity]", "8/10 9/10",
        f"[{'9' * 400}, 5]", "7 8\nno: 12 8\n12 8",  # what the judge ended with is out of range
    ],
)  # fmt: skip
def test_what_is_no_pair_in_range_failed(text):
    assert parse_scores(text) is None


@pytest.mark.parametrize(
    ("text", "rating"),
    [
        ("Rating: [[5]]", 5), ("[[7.5]]", 7.5), ("[3] and so Rating: [[6]]", 6), ("[4]", 4),
        ("[[5]] or [[6]]", 5), ("5", None), ("[[five]]", None), ("[[11]]", None), ("", None),
        ("[[-1]]", None), ("[[10]]", 10),
    ],
)  # fmt: skip
def test_a_rating_stands_in_double_brackets_or_else_in_single_ones(text, rating):
    assert parse_rating(text) == rating


@pytest.mark.parametrize(
    ("text", "verdict"),
    [("so [[A]]", "A"), ("[[B]]", "B"), ("[[C]]", "tie"), ("[A]", None), ("[[B]] not [[A]]", "A")],
)
def test_a_verdict_is_one_of_three(text, verdict):
    assert parse_verdict(text) == verdict


def test_a_win_needs_both_orders_to_agree():
    assert outcome("A", "B") == "win"
    assert outcome("B", "A") == "loss"
    assert {outcome("A", "A"), outcome("B", "B"), outcome("tie", "B")} == {"tie"}
    assert outcome("A", None) is None
