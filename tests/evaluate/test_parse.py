"""Scores, ratings and verdicts out of a judge's words."""

import pytest

from ochat_ray.evaluate.mt_bench import outcome, parse_rating, parse_verdict
from ochat_ray.evaluate.verdicts import rating_of, scores_of, verdict_of, without_reasoning
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
    ("text", "scores"),
    [
        ("Score of the Assistant 1: 8\nScore of the Assistant 2: 7", (8, 7)),
        ("**Assistant 1:** 8/10\n\n**Assistant 2:** 7/10 for two errors", (8, 7)),
        ("Assistant 2: 7\nAssistant 1: 8", (8, 7)),
        ("Assistant 1: 8.5, Assistant 2: 7", (8.5, 7)),
        ("Assistant 1's score: 8 (clear)\nAssistant 2's score: 7 - too long", (8, 7)),
        ('{"assistant_1": 8, "assistant_2": 7}', (8, 7)),
        ("Accuracy:\nAssistant 1: 3\nAssistant 2: 4\nAll:\nAssistant 1: 8\nAssistant 2: 7", (8, 7)),
        ("Answer 1: 6\nAnswer 2: 5\nare what they say.\n[8, 7]", (8, 7)),
        ("[8, 7]\nAnswer 1: 6\nAnswer 2: 5", (8, 7)),
        ("Assistant 1:\n\nScore: 8/10\nClear.\n\nAssistant 2:\n\nScore: 7/10\nLong.", (8, 7)),
        ("The points (2, 1) and (10, 4) are 8.5 apart.", None),
        ("Assistant 1: 4/5\nAssistant 2: 3/5", None),
        ("Assistant 1: 12\nAssistant 2: 7", None),
        ("Assistant 1: 8\nAssistant 2: no score", None),
        ("Assistant 1: 5\nAssistant 2: 6\nAfter all:\nAssistant 1: 8", None),
        ("Assistant 1: 3 examples\nAssistant 2: 2 examples", None),
        ("The output is (10, 1). Assistant 1 is better.", (10, 1)),
        ("I give [8/10, 7/10], as gcd(8, 4) and a[1, 2] are wrong.", (8, 7)),
        ("[8, 7]\n\nNote: answer 2 prints [1, 2].", (8, 7)),
        ("8 9\n\nBoth print [1, 2].", (8, 9)),
        ("Scores: 8, 7.", (8, 7)),
        ("Both answer correctly the coordinates [3, 4].", None),
        ("Assistant 1's code returns [1, 2] which is right", None),
        ("Assistant 1 gave the output (3, 4), Assistant 2 the output (4, 3)", None),
        ("My ratings: Assistant 1 and 2 get (8, 7).", (8, 7)),
        ("- **[8, 7]**", (8, 7)),
    ],
)
def test_scores_may_be_labelled_or_a_tuple_or_stand_alone_before_a_list_in_prose(text, scores):
    assert parse_scores(text) == scores


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("<think>[[4]]</think>\n[[9]]", "\n[[9]]"),
        ("<think>Perhaps [[3]]", ""),
        ("so [[3]]?</think>[[9]]", "[[9]]"),
        ("<THINKING>\n[[4]]\n</thinking>[[9]]", "[[9]]"),
        ("<think>a <think> b</think> c</think>[[9]]", "[[9]]"),
        ("[THINK]x[/THINK][[9]]", "[[9]]"),
        ("a<think>b</think>c<think>d</think>e", "ace"),
        ("◁think▷x◁/think▷y", "y"),
        ("It shows its `<think>` tag. [[2]]", "It shows its `<think>` tag. [[2]]"),
        ("I think <thinker> and x < 3", "I think <thinker> and x < 3"),
    ],
)
def test_reasoning_is_cut_out(text, left):
    assert without_reasoning(text) == left


@pytest.mark.parametrize(
    "after",
    [
        "<|im_end|>\n<|im_start|>user\n{}",
        "<|eot_id|><|start_header_id|>user<|end_header_id|>{}",
        "<end_of_turn>\n<start_of_turn>user\n{}",
        "<|end|>\n<|user|>\n{}",
        "</s>\n### User: {}",
    ],
)
def test_a_judge_that_continues_with_the_next_turn_is_read_to_the_end_of_its_own(after):
    assert parse_scores("[8, 7]" + after.format("[1, 9]")) == (8, 7)
    assert parse_rating("[[8]]" + after.format("[[1]]")) == 8
    assert parse_verdict("[[A>B]]" + after.format("[[B>A]]")) == "A"


def test_tokens_that_a_judge_writes_about_do_not_end_its_turn():
    text = "The second answer leaks <|im_end|> and </s>.\n[8, 7]"
    assert parse_scores(text) == (8, 7)
    assert parse_rating("AnalysisOfAll: good\n[[8]]") == 8


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


@pytest.mark.parametrize("reason", ["length", "content_filter"])
def test_a_list_in_prose_is_no_verdict_of_a_judgment_that_was_cut_off(reason):
    judgment = {"text": "The score of [8, 7] would be", "finish_reason": reason}
    assert scores_of(judgment) is None
    assert scores_of(judgment | {"finish_reason": "stop"}) == (8, 7)
    assert scores_of(judgment | {"text": "[8, 7]\nThe first"}) == (8, 7)


@pytest.mark.parametrize(
    "text",
    [
        "<|channel|>analysis<|message|>Maybe {}. Let me th",
        "<|channel|>analysis<|message|>{}<|end|><|start|>assistant<|channel|>commentary",
        "analysisMaybe {}",
        "<|START_THINKING|>{}",
    ],
)
def test_reasoning_of_other_formats_that_is_cut_off_has_no_verdict(text):
    assert parse_rating(text.format("Rating: [[3]]")) is None
    assert parse_verdict(text.format("[[B>>A]]")) is None
    assert parse_scores(text.format("\n[3, 9]\n")) is None


@pytest.mark.parametrize(
    "text",
    [
        "<|channel|>analysis<|message|>[[3]]<|end|><|start|>assistant<|channel|>final<|message|>{}",
        "analysisMaybe [[3]]assistantfinal{}",
        "<|START_THINKING|>[[3]]<|END_THINKING|>{}",
    ],
)
def test_the_verdict_after_reasoning_of_other_formats_is_read(text):
    assert without_reasoning(text.format("[[8]]")) == "[[8]]"


@pytest.mark.parametrize(
    ("text", "rating"),
    [
        ("Rating: [[5]]", 5), ("[[7.5]]", 7.5), ("[3] and so Rating: [[6]]", 6), ("[4]", 4),
        ("[[5]] or [[6]]", 6), ("5", None), ("[[five]]", None), ("[[11]]", None), ("", None),
        ("[[-1]]", None), ("[[10]]", 10),
        ("A [[1]] is useless, a [[10]] perfect. Rating: [[6]]", 6),
        ("Rating: [[8/10]]", 8), ("[[ 8 out of 10 ]]", 8), ("Rating: [[8,5]]", 8.5), ("[[8.]]", 8),
        ("**Rating: [[**7**]]**", 7), ("\\[\\[7\\]\\]", 7), ("[[Rating: 7]]", 7),
        ("[[4/5]]", None), ("[[8/100]]", None), ("[[8]] or rather [[11]]", None),
        ("Use [[3]]. Rating: [[N/A]]", None), ("As [1] and [2] show, it is good.", None),
        ("The loop starts at nums[0].", None), ("It is right [1].\nRating: [8/10]", 8),
    ],
)  # fmt: skip
def test_a_rating_is_the_last_in_double_brackets_or_alone_in_single_ones(text, rating):
    assert parse_rating(text) == rating


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("so [[A]]", "A"), ("[[B]]", "B"), ("[[C]]", "tie"), ("[A]", None),
        ("not [[A]]: [[B]]", "B"), ("[[A]] if A is better, [[B]] if B is.\n[[B]]", "B"),
        ("Neither [[A]] nor [[B]]: [[C]]", "tie"), ("[[A>B]]", "A"), ("[[A>>B]]", "A"),
        ("[[A=B]]", "tie"), ("[[B>A]]", "B"), ("[[B>>A]]", "B"), ("[[A < B]]", "B"),
        ("[[A&gt;B]]", "A"), ("[[ b ]]", "B"), ("[[Tie]]", "tie"), ("[[Assistant A]]", "A"),
        ("[[A>A]]", None), ("[[D]]", None), ("[[A]] ... [[neither]]", None), ("[[A<>B]]", None),
    ],
)  # fmt: skip
def test_a_verdict_is_the_last_mark(text, verdict):
    assert parse_verdict(text) == verdict


def test_a_win_needs_both_orders_to_agree():
    assert outcome("A", "B") == "win"
    assert outcome("B", "A") == "loss"
    assert {outcome("A", "A"), outcome("B", "B"), outcome("tie", "B")} == {"tie"}
    assert outcome("A", None) is None


@pytest.mark.parametrize(
    ("empty", "verdict", "scores"),
    [
        ((True, False), "B", (1, 10)),
        ((False, True), "A", (10, 1)),
        ((True, True), "tie", (1, 1)),
        ((False, False), None, None),
    ],
)
def test_an_empty_answer_that_is_not_rated_is_the_worse_one(empty, verdict, scores):
    judgment = {"text": "There is no answer.", "empty": empty, "finish_reason": "stop"}
    assert (verdict_of(judgment), scores_of(judgment)) == (verdict, scores)
    for not_complete in ({"text": ""}, {"text": "<think>so"}, {"finish_reason": "length"}):
        assert verdict_of(judgment | not_complete) is None
    rated = judgment | {"text": "[[A]]\n[3, 2]"}
    assert (verdict_of(rated), scores_of(rated)) == ("A", (3, 2))


def test_an_empty_answer_that_is_not_rated_has_the_lowest_rating():
    assert rating_of({"text": "There is no answer.", "empty": [True]}) == 1
    assert rating_of({"text": "[[3]]", "empty": [True]}) == 3
    assert rating_of({"text": "No rating.", "empty": [False]}) is None
