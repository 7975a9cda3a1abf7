"""Agreement of the judge with people."""

import json

import pytest

from ochat_ray.errors import UserError
from ochat_ray.evaluate.config import EvaluateConfig
from ochat_ray.evaluate.human_labels import human_agreement, read_labels
from ochat_ray.evaluate.questions import Question
from ochat_ray.evaluate.report import report_html
from tests.evaluate.test_report import Tags, one, results

QUESTIONS = [Question(id=str(n), category="", turns=("?",)) for n in range(4)]


def read(tmp_path, text, model="vicuna-13b", baseline="gpt35"):
    path = tmp_path / "labels.txt"
    path.write_text(text)
    return read_labels(str(path), QUESTIONS, model=model, baseline=baseline)


def test_faireval_names_one_model_per_line(tmp_path):
    """CHATGPT is no name of gpt35, but VICUNA13B is the other model's."""
    found = read(tmp_path, "CHATGPT\nTIE\nVICUNA13B\nVICUNA13B")
    assert found == {"0": 0, "1": 0.5, "2": 1, "3": 1}
    assert read(tmp_path, "a\nb\na\ntie\n", "a", "b") == {"0": 1, "1": 0, "2": 1, "3": 0.5}


def test_json_lines_name_their_questions(tmp_path):
    rows = [
        {"question_id": 2, "winner": "model"},
        {"question_id": "0", "winner": "baseline"},
        {"question_id": 9, "winner": "tie"},
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    assert read(tmp_path, text) == {"2": 1, "0": 0}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("TIE\nTIE", "2 lines for 4 questions"),
        ("X\nY\nTIE\nTIE", "'X' is none of vicuna-13b, gpt35"),
        ("X\nTIE\nTIE\nTIE", "'X' is none of"),
        ('{"question_id": 1}', "line 1: KeyError 'winner'"),
        ('{"question_id": 77, "winner": "tie"}', "no label of a question"),
    ],
)
def test_other_files_are_one_line(tmp_path, text, line):
    with pytest.raises(UserError, match=line):
        read(tmp_path, text)


def test_accuracy_kappa_and_counts():
    labels = {str(n): value for n, value in enumerate([1, 1, 1, 0.5, 0, 0])}
    judge = {str(n): value for n, value in enumerate([1, 1, 0, 0.5, 0.5])}
    found = human_agreement(labels, judge, seed=1)
    assert (found["labels"], found["questions"], found["not_judged"]) == (6, 5, 1)
    assert found["accuracy"] == 0.6
    # By chance: wins 3/5 * 2/5, ties 1/5 * 2/5, losses 1/5 * 1/5: 9/25.
    assert found["kappa"] == pytest.approx((0.6 - 0.36) / 0.64)
    assert found["people"] == {"wins": 3, "ties": 1, "losses": 1}
    assert found["judge"] == {"wins": 2, "ties": 2, "losses": 1}
    assert found["interval"]["low"] < 0.6 < found["interval"]["high"]


def test_nothing_in_common_is_no_agreement():
    found = human_agreement({"1": 1.0}, {}, seed=1)
    assert (found["accuracy"], found["kappa"], found["not_judged"]) == (None, None, 1)


def test_the_report_shows_it():
    found = human_agreement({"1": 1.0, "2": 0.0}, {"1": 1.0, "2": 0.5}, seed=1)
    text = "".join(Tags(report_html(results(one("ours", human=found)), [])).text)
    assert "judge and people agree50%" in text
    assert "people: wins, ties, losses1, 0, 1" in text


def test_labels_are_of_one_pair():
    fields = {"questions": "q", "output": "o", "baseline": "b", "judge": "j", "human_labels": "h"}
    EvaluateConfig(model=("a",), **fields).check()
    with pytest.raises(UserError, match="--human-labels is for one --model"):
        EvaluateConfig(model=("a", "c"), **fields).check()


def test_a_name_that_is_taken_for_the_other_model_is_told(tmp_path, capsys):
    path = tmp_path / "labels.txt"
    path.write_text("m\nzzz\n")
    questions = [Question(id=id, category="", turns=("q",)) for id in ("1", "2")]
    assert read_labels(str(path), questions, model="m", baseline="b") == {"1": 1.0, "2": 0.0}
    assert "'zzz' is taken for b" in capsys.readouterr().err
