"""Arena-Hard's labels, votes and ratings, worked out by hand."""

import json

import pytest

from ochat_ray.evaluate import arena_hard
from ochat_ray.evaluate.questions import read_answers, read_questions
from ochat_ray.evaluate.stats import Part
from ochat_ray.evaluate.steps import run
from ochat_ray.evaluate.verdicts import parse_votes
from tests.evaluate.endpoint import Endpoint
from tests.evaluate.test_report import Tags
from tests.evaluate.test_steps import configured


@pytest.mark.parametrize(
    ("label", "votes"),
    [
        ("[[A>>B]]", (1, 3)), ("[[A>B]]", (1, 1)), ("[[A=B]]", (0.5, 1)), ("[[B=A]]", (0.5, 1)),
        ("[[B>A]]", (0, 1)), ("[[B>>A]]", (0, 3)), ("[[A<<B]]", (0, 3)), ("[[A<B]]", (0, 1)),
        ("[[A&gt;&gt;B]]", (1, 3)), ("**[[A>>B]]**", (1, 3)), ("[[A]]", (1, 1)),
        ("[[A>>B]] no, [[B>A]]", (0, 1)), ("<think>[[A>>B]]</think>", None), ("[[A>>A]]", None),
        ("A>>B", None),
    ],
)  # fmt: skip
def test_labels_are_read(label, votes):
    assert parse_votes(label) == votes


def judgment(id, model_first, text):
    return {"question_id": id, "model_first": model_first, "text": text, "lengths": [1, 1]}


def test_both_orders_are_counted_by_votes():
    found = arena_hard.parts(
        [
            judgment("1", True, "[[A>>B]]"),
            judgment("1", False, "[[A>B]]"),
            judgment("2", True, "[[A=B]]"),
            judgment("2", False, "[[B>>A]]"),
            judgment("3", True, "[[A>>B]]"),
            judgment("3", False, "no label"),
        ]
    )
    # Three of four votes; half a vote and three of four; no label in one order.
    assert found == {"1": Part(300, 4), "2": Part(350, 4), "3": Part(0, 0)}


def test_an_empty_answer_that_is_not_rated_loses_clearly():
    refused = judgment("1", True, "There is nothing to compare.") | {"empty": [True, False]}
    assert arena_hard.parts([refused, judgment("1", False, "[[A>>B]]")]) == {"1": Part(0, 6)}


def test_arena_hards_files_are_read(tmp_path):
    (tmp_path / "q.jsonl").write_text(
        json.dumps({"uid": "u1", "category": "coding", "prompt": "do it", "cluster": "x"}) + "\n"
    )
    (question,) = read_questions(tmp_path / "q.jsonl")
    assert (question.id, question.category, question.turns) == ("u1", "coding", ("do it",))
    said = {"role": "assistant", "content": {"answer": "done"}}
    record = {"uid": "u1", "model": "m", "messages": [{"role": "user", "content": "do it"}, said]}
    (tmp_path / "a.jsonl").write_text(json.dumps(record) + "\n")
    assert read_answers(tmp_path / "a.jsonl").turns == {"u1": ("done",)}


def test_models_are_rated_with_and_without_style(tmp_path):
    """The judge prefers the model's answers by one label, clearly where the question is even."""
    (tmp_path / "q.jsonl").write_text(
        "".join(json.dumps({"uid": f"u{n}", "prompt": f"question {n}"}) + "\n" for n in range(8))
    )

    def answer(body):
        text = body["messages"][-1]["content"]
        if body["model"] != "judge":
            bold = "**long**" if body["model"] == "ours" and text[-1] in "012" else ""
            return f"{bold}<{body['model']} on {text}>"
        first = text.index("<ours") < text.index("<base")
        if "question 7" in text:
            return "[[B>A]]" if first else "[[A>B]]"
        sign = ">>" if int(text[text.index("question ") + 9]) % 2 == 0 else ">"
        return f"[[A{sign}B]]" if first else f"[[B{sign}A]]"

    endpoint = Endpoint(answer)
    with endpoint.serving():
        path = tmp_path / "q.jsonl"
        result = run(configured(tmp_path, path, endpoint.url, suite="arena_hard"))
    (one,) = result["scores"]
    # Both orders: 4 questions of 3 votes and 3 of 1 vote won, one of 1 vote lost: 30 of 32.
    assert one["score"] == pytest.approx(100 * 30 / 32)
    assert one["failed"] == 0
    assert one["biases"]["order_changes_verdict"] == 0
    best = result["ratings"]["ratings"][0]
    assert best["model"] == "ours"
    assert best["score"] == pytest.approx(1000 + 400 * 1.176, abs=2)  # odds of 15
    assert set(result["style_controlled"]["style"]) == {"length", "bold"}  # the others are constant
    text = "".join(Tags((tmp_path / "out/report.html").read_text()).text)
    for shown in ("Bradley-Terry ratings", "With style under control", "A>>B", "93.75"):
        assert shown in text
