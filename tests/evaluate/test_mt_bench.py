"""What the judge of two-turn questions is asked, and what its words come to."""

import pytest

from ochat_ray.errors import UserError
from ochat_ray.evaluate.mt_bench import (
    PROMPT_NAMES,
    MTBenchPairs,
    judged,
    outcomes,
    pair_calls,
    pair_parts,
    rating_calls,
    rating_parts,
)
from ochat_ray.evaluate.prompts import read_prompts
from ochat_ray.evaluate.questions import Answers, Question
from ochat_ray.evaluate.stats import Part, estimate

QUESTIONS = [
    Question(id="81", category="writing", turns=("write", "shorter")),
    Question(id="111", category="math", turns=("add", "and more")),
]
MODEL = Answers(model="ours", turns={"81": ("W1", "W2"), "111": ("M1", "M2")})
BASELINE = Answers(model="base", turns={"81": ("V1", "V2"), "111": ("N1", "N2")})
REFERENCES = Answers(model="gpt-4", turns={"111": ("R1", "R2")})
JUDGE = {"model": "judge", "temperature": 0.0, "max_tokens": 2048}
PROMPTS = read_prompts(None, suite="mt_bench", names=PROMPT_NAMES)


def text(call):
    return call.body["messages"][-1]["content"]


def test_every_turn_is_rated_with_what_was_said_before_it():
    calls = rating_calls(QUESTIONS, MODEL, REFERENCES, PROMPTS, judge=JUDGE)
    assert [call.about["prompt"] for call in calls] == [
        "single-v1",
        "single-v1-multi-turn",
        "single-math-v1",
        "single-math-v1-multi-turn",
    ]
    first, second, math, more = map(text, calls)
    assert "W1" in first
    assert "W2" not in first
    assert first.index("write") < first.index("W1")
    places = [second.index(word) for word in ("write", "W1", "shorter", "W2")]
    assert places == sorted(places)
    assert "R1" in math
    assert "R2" not in math
    assert all(word in more for word in ("R1", "R2", "M1", "M2", "and more"))
    assert len({call.key for call in calls}) == 4


def test_a_category_that_needs_a_reference_is_refused_without_one():
    with pytest.raises(UserError, match=r"question '111' \(math\) needs a reference"):
        rating_calls(QUESTIONS, MODEL, None, PROMPTS, judge=JUDGE)
    assert rating_calls(QUESTIONS[:1], MODEL, None, PROMPTS, judge=JUDGE)


def test_pairs_are_shown_in_both_orders():
    calls = pair_calls(QUESTIONS, MODEL, BASELINE, REFERENCES, PROMPTS, judge=JUDGE)
    assert len({call.key for call in calls}) == 2 * 2 * 2
    one, other = (text(call).replace(call.key[:8], "") for call in calls[:2])
    assert one.index("W1") < one.index("V1")
    assert one.replace("W1", "\0").replace("V1", "W1").replace("\0", "V1") == other
    assert calls[6].about["prompt"] == "pair-math-v1-multi-turn"


def rated(question_id, turn, words):
    return {"question_id": question_id, "turn": turn, "text": words}


def test_a_mean_is_over_all_ratings_and_a_failure_is_missing():
    found = [
        rated("81", 0, "[[8]]"),
        rated("81", 1, "[[5]]"),
        rated("111", 0, "[[2]]"),
        rated("111", 1, "no idea"),
    ]
    parts = rating_parts(found)
    assert parts == {"81": Part(13, 2), "111": Part(2, 1)}
    assert estimate(list(parts.values()), seed=1).value == 5
    assert rating_parts(found, turn=1) == {"81": Part(5, 1), "111": Part(0, 0)}


def compared(question_id, model_first, words, turn=0):
    return {
        "question_id": question_id,
        "turn": turn,
        "model_first": model_first,
        "text": words,
        "lengths": [3, 9],
    }


def test_an_outcome_follows_the_rule_of_the_score():
    """Its scores in both orders would add up to a win: A and a tie, by turns."""
    suite = object.__new__(MTBenchPairs)
    tied = [compared("81", True, "[[A]]", turn) | {"turn": turn} for turn in (0, 1)] + [
        compared("81", False, "[[C]]", turn) for turn in (0, 1)
    ]
    assert suite.outcomes(tied) == {"81": 0.5}
    won = [compared("81", True, "[[A]]", 0), compared("81", False, "[[B]]", 0), *tied[1::2]]
    assert suite.outcomes(won) == {"81": 1}
    assert suite.outcomes([compared("81", True, "?"), compared("81", False, "[[A]]")]) == {}


def test_a_win_is_a_win_in_both_orders():
    found = [
        compared("81", True, "[[A]]"),
        compared("81", False, "[[B]]"),
        compared("81", True, "[[A]]", 1),
        compared("81", False, "[[A]]", 1),
        compared("111", True, "[[B]]"),
        compared("111", False, "[[A]]"),
        compared("111", True, "[[C]]", 1),
        compared("111", False, "?", 1),
    ]
    assert outcomes(found) == {
        ("81", 0): "win",
        ("81", 1): "tie",
        ("111", 0): "loss",
        ("111", 1): None,
    }
    assert pair_parts(found) == {"81": Part(150, 2), "111": Part(0, 1)}
    (first, *_) = judged(found)
    assert (first.preferred, first.pair, first.first_length) == (1, ("81", 0, None), 3)
