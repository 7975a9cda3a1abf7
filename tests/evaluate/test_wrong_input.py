"""Input that does not fit together ends the job with one line and status 2."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.evaluate.endpoint import Endpoint, refusal

JOB = Path(__file__).parents[2] / "jobs/evaluate.py"


@pytest.fixture
def job(tmp_path):
    """Run it on questions and a baseline's answers; what it said."""

    def run(questions, answers, *options, url="http://127.0.0.1:1/v1"):
        for name, rows in (("questions", questions), ("answers", answers)):
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (tmp_path / f"{name}.jsonl").write_text(lines)
        given = (
            "--questions questions.jsonl --baseline-answers answers.jsonl --model m --judge j "
            f"--output out --url {url} --judge-url {url} --attempts 1"
        )
        command = [sys.executable, str(JOB), *given.split(), *options]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert done.returncode == 2, done.stderr
        last = done.stderr.strip().splitlines()[-1]
        assert last.startswith("jobs/evaluate.py: ")
        assert "Traceback" not in done.stderr
        return last

    return run


def asked(*ids, category="generic"):
    return [{"question_id": id, "text": f"question {id}", "category": category} for id in ids]


def answered(*ids):
    return [{"question_id": id, "answer": f"answer {id}", "model_id": "gpt35"} for id in ids]


def test_a_missing_answer_of_the_baseline_is_named(job):
    endpoint = Endpoint(lambda body: "said")
    with endpoint.serving():
        line = job(asked(16, 17, 18), answered(16, 18), url=endpoint.url)
    assert "gpt35 has no complete answer to 1 of 3 questions, first '17'" in line


def test_answers_to_other_questions_are_told(job):
    endpoint = Endpoint(lambda body: "said")
    with endpoint.serving():
        line = job(asked(1, 2), answered("a", "b"), url=endpoint.url)
    assert "no complete answer to 2 of 2 questions, first '1'" in line


def test_a_judge_that_refuses_the_key(job):
    def misbehave(body, before):
        return refusal(401, "invalid key") if body["model"] == "j" else None

    endpoint = Endpoint(lambda body: "said", misbehave)
    with endpoint.serving():
        line = job(asked(1), answered(1), url=endpoint.url)
    assert "refuses the key: 401 invalid key" in line


@pytest.mark.parametrize(("suite", "example"), [("vicuna", "common-sense"), ("mt_bench", "stem")])
def test_an_unknown_category(job, suite, example):
    pairwise = ("--pairwise",) if suite == "mt_bench" else ()
    line = job(asked(5, category="mth"), answered(5), "--suite", suite, *pairwise)
    assert "question '5' has the unknown category 'mth'" in line
    assert example in line
