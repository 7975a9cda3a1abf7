"""Answer, judge and score against endpoints that misbehave; killed, and run again."""

from __future__ import annotations

import asyncio
import errno
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from starlette.responses import JSONResponse

from ochat_ray.errors import UserError
from ochat_ray.evaluate.alpaca import read_annotations
from ochat_ray.evaluate.config import EvaluateConfig
from ochat_ray.evaluate.questions import read_answers
from ochat_ray.evaluate.records import Records
from ochat_ray.evaluate.steps import run
from ochat_ray.jobs.evaluate import describe
from tests.evaluate.conftest import QUESTIONS
from tests.evaluate.endpoint import Endpoint, completion, refusal

JOB = Path(__file__).parents[2] / "jobs/evaluate.py"


def said(body):
    """A model's answer names the model and the question."""
    return f"<{body['model']} on {body['messages'][-1]['content']}>"


def verdict(body):
    """10 to the answers of "ours", 5 to all others, whatever the order."""
    names = re.findall(r"<(\w+) on question", body["messages"][-1]["content"])
    return "because\n" + " ".join("10" if name == "ours" else "5" for name in names)


def answer(body):
    return verdict(body) if body["model"] == "judge" else said(body)


def configured(tmp_path, questions, url, /, **fields):
    return EvaluateConfig(
        **{
            "questions": str(questions), "output": str(tmp_path / "out"), "model": ("ours",),
            "baseline": "base", "judge": "judge", "url": url, "judge_url": url, "samples": 2,
            "attempts": 3,
        }
        | fields
    )  # fmt: skip


def test_answers_are_asked_judged_and_scored_once(tmp_path, questions):
    endpoint = Endpoint(answer)
    with endpoint.serving():
        config = configured(tmp_path, questions, endpoint.url)
        result = run(config)
        assert len(endpoint.asked) == 2 * QUESTIONS + 2 * 2 * QUESTIONS
        again = run(config)
    assert len(endpoint.asked) == 2 * QUESTIONS + 2 * 2 * QUESTIONS  # not one more
    (one,) = result["scores"]
    assert (one["model"], one["score"], one["low"], one["high"]) == ("ours", 200, 200, 200)
    assert (one["judgments"], one["failed"]) == (24, 0)
    assert {name: c["score"] for name, c in one["by_category"].items()} == {
        "math": 200,
        "generic": 200,
    }
    assert one["biases"]["order_changes_verdict"] == 0
    assert again["scores"] == result["scores"]
    assert json.loads((tmp_path / "out/results.json").read_text())["scores"] == result["scores"]
    report = (tmp_path / "out/report.html").read_text()
    assert report.count("<details") == QUESTIONS
    assert "&lt;ours on question 5&gt;" in report


def test_a_model_that_is_named_twice_is_asked_once(tmp_path, questions):
    endpoint = Endpoint(answer)
    with endpoint.serving():
        result = run(configured(tmp_path, questions, endpoint.url, model=("ours", "ours")))
    assert len(endpoint.asked) == 2 * QUESTIONS + 2 * 2 * QUESTIONS
    assert len(result["scores"]) == 1


def test_a_judge_may_be_held_to_the_scores_alone(tmp_path, questions):
    endpoint = Endpoint(lambda body: "[10, 5]" if body["model"] == "judge" else said(body))
    with endpoint.serving():
        run(configured(tmp_path, questions, endpoint.url, judge_scores_only=True))
    forms = [b.get("response_format", {}) for b in endpoint.asked if b["model"] == "judge"]
    assert {form["json_schema"]["schema"]["maxItems"] for form in forms} == {2}


def test_a_judge_that_misbehaves_costs_calls_and_not_scores(tmp_path, questions):
    trouble = [refusal(429, retry_after="0"), refusal(500), "half"]

    def misbehave(body, before):
        return trouble[before] if body["model"] == "judge" and before < len(trouble) else None

    endpoint = Endpoint(answer, misbehave)
    with endpoint.serving():
        result = run(configured(tmp_path, questions, endpoint.url, attempts=4, limit=2, samples=1))
    assert result["scores"][0]["score"] == 200
    assert set(endpoint.answered.values()) == {1}


@pytest.mark.parametrize("words", ["11 10", "no scores at all", "nan 5"])
def test_judgments_that_cannot_be_read_are_counted_and_shown_both_ways(tmp_path, questions, words):
    def some(body):
        text = body["messages"][-1]["content"]
        return words if body["model"] == "judge" and "question 1" in text else answer(body)

    endpoint = Endpoint(some)
    with endpoint.serving():
        (one,) = run(configured(tmp_path, questions, endpoint.url))["scores"]
    assert (one["failed"], one["not_judged"], one["score"]) == (4, 1, 200)
    assert one["by_failures"]["zero"]["score"] == 200  # 0 to 0 changes no ratio of sums
    assert one["by_failures"]["drop"]["score"] == 200


def test_orders_in_contradiction_show_as_a_bias(tmp_path, questions):
    def first_wins(body):
        return "9 3" if body["model"] == "judge" else said(body)

    endpoint = Endpoint(first_wins)
    with endpoint.serving():
        (one,) = run(configured(tmp_path, questions, endpoint.url))["scores"]
    assert one["score"] == 100
    assert one["biases"]["order_changes_verdict"] == 1
    assert one["biases"]["first_minus_second"] == 6


def test_calls_that_were_given_up_are_told_and_made_the_next_time(tmp_path, questions):
    broken = {"yes": True}

    def misbehave(body, before):
        refuse = broken["yes"] and body["messages"][-1]["content"] == "question 3"
        return refusal(400, "not this one") if refuse else None

    endpoint = Endpoint(answer, misbehave)
    with endpoint.serving():
        config = configured(tmp_path, questions, endpoint.url)
        with pytest.raises(UserError, match="2 of 12 calls failed, first: 400 not this one"):
            run(config)
        with pytest.raises(UserError, match="no complete answer to 1 of 6 questions, first '3'"):
            run(configured(tmp_path, questions, endpoint.url, step="judge"))
        broken.clear()
        broken["yes"] = False
        assert run(config)["scores"][0]["score"] == 200
    assert set(endpoint.answered.values()) == {1}


def test_one_answer_to_all_questions_is_reported(tmp_path, questions):
    def constant(body):
        return "[[10]]" if body["model"] == "ours" else answer(body)

    endpoint = Endpoint(lambda body: "8 9" if body["model"] == "judge" else constant(body))
    with endpoint.serving():
        result = run(configured(tmp_path, questions, endpoint.url))
    counts = result["answers"]["ours"]
    assert [counts[name] for name in ("answered", "empty", "identical")] == [6, 0, 6]
    assert result["answers"]["base"]["identical"] == 0
    line = "6 of 6 questions have an answer of ours that it gives to another question as well."
    assert result["warnings"] == [line]
    assert line in (tmp_path / "out/report.html").read_text()


def test_an_empty_answer_that_is_not_rated_has_the_lowest_score(tmp_path, questions):
    def reply(body):
        asks_three = "question 3" in body["messages"][-1]["content"]
        if body["model"] == "judge":
            return "Nothing to rate." if asks_three else "8 8"
        return " " if asks_three and body["model"] == "ours" else said(body)

    endpoint = Endpoint(reply)
    with endpoint.serving():
        result = run(configured(tmp_path, questions, endpoint.url))
    (one,) = result["scores"]
    assert (one["failed"], one["declined"], one["not_judged"]) == (0, 4, 0)
    assert one["score"] == pytest.approx(100 * (5 * 8 + 1) / (5 * 8 + 10))
    assert "4 of 24 judgments do not rate an empty answer" in " ".join(result["warnings"])


@pytest.mark.parametrize(("suite", "turns"), [("vicuna", 2), ("mt_bench", 3), ("alpaca_eval", 2)])
def test_a_turn_that_the_judge_would_not_see_is_refused(tmp_path, suite, turns):
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps({"question_id": "q7", "turns": ["one"] * turns}))
    baseline = "" if suite == "mt_bench" else "base"
    fields = {"suite": suite, "baseline": baseline}
    with pytest.raises(UserError, match=f"'q7' has {turns} turns, of which the judge of {suite}"):
        run(configured(tmp_path, path, "http://127.0.0.1:1/v1", **fields))


def test_a_score_needs_all_judgments(tmp_path, questions):
    endpoint = Endpoint(answer)
    with endpoint.serving():
        run(configured(tmp_path, questions, endpoint.url, step="answer"))
        with pytest.raises(UserError, match="24 of 24 judgments of ours are missing"):
            run(configured(tmp_path, questions, endpoint.url, step="score"))


def test_a_dry_run_asks_nothing_and_tells_what_is_left(tmp_path, questions):
    prices = tmp_path / "prices.json"
    prices.write_text('{"judge": {"prompt": 10, "completion": 100}}')
    endpoint = Endpoint(answer)
    with endpoint.serving():
        fields = {"prices": str(prices), "judge_max_tokens": 100}
        config = configured(tmp_path, questions, endpoint.url, **fields)
        dry = run(configured(tmp_path, questions, endpoint.url, dry_run=True, **fields))
        assert endpoint.asked == []
        assert {name: spent["calls"] for name, spent in dry.items()} == {
            "answers of ours": 6,
            "answers of base": 6,
            "judgments by judge": 24,
        }
        judging = dry["judgments by judge"]
        assert judging["completion_tokens"] == 2400
        assert judging["dollars"] == pytest.approx(
            (10 * judging["prompt_tokens"] + 100 * 2400) / 1e6
        )
        run(config)
        after = run(configured(tmp_path, questions, endpoint.url, dry_run=True, **fields))
    assert {spent["calls"] for spent in after.values()} == {0}


def test_several_models_are_compared_question_by_question(tmp_path, questions):
    endpoint = Endpoint(answer)
    with endpoint.serving():
        config = configured(tmp_path, questions, endpoint.url, model=("ours", "theirs"))
        result = run(config)
    assert [one["score"] for one in result["scores"]] == [200, 100]
    (difference,) = result["differences"]
    assert (difference["first"], difference["second"]) == ("ours", "theirs")
    assert (difference["score"], difference["low"], difference["high"]) == (100, 100, 100)


@pytest.fixture
def two_turns(tmp_path):
    path = tmp_path / "bench.jsonl"
    rows = [
        {"question_id": 81, "turns": ["question a", "question b"], "category": "writing"},
        {"question_id": 111, "turns": ["question c", "question d"], "category": "math"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    references = tmp_path / "references.jsonl"
    row = {"question_id": 111, "model_id": "gpt-4", "choices": [{"turns": ["c!", "d!"]}]}
    references.write_text(json.dumps(row))
    return {"questions": str(path), "references": str(references), "suite": "mt_bench"}


def test_two_turns_are_answered_one_after_the_other_and_rated(tmp_path, two_turns):
    def rate(body):
        if body["model"] != "judge":
            return said(body)
        return "[[4]]" if "question d" in body["messages"][-1]["content"] else "Rating: [[8]]"

    endpoint = Endpoint(rate)
    with endpoint.serving():
        result = run(configured(tmp_path, "", endpoint.url, baseline="", **two_turns))
    (one,) = result["scores"]
    assert (one["score"], one["turn_1"], one["turn_2"]) == (7, 8, 6)
    assert {name: c["score"] for name, c in one["by_category"].items()} == {"writing": 8, "math": 6}
    assert (result["baseline"], "biases" in one) == (None, False)
    answers = [body for body in endpoint.asked if body["model"] == "ours"]
    assert {body["temperature"] for body in answers} == {0.0, 0.7}  # math's and writing's
    second = next(b for b in answers if b["messages"][-1]["content"] == "question d")
    assert [message["role"] for message in second["messages"]] == ["user", "assistant", "user"]
    assert second["messages"][1]["content"] == "<ours on question c>"
    # The files are FastChat's: its own mean of them is the same.
    folder = tmp_path / "out/models/ours"
    assert read_answers(folder / "model_answer.jsonl").turns["81"][1] == "<ours on question b>"
    judged = [json.loads(line) for line in (folder / "single.jsonl").read_text().splitlines()]
    assert [row["score"] for row in judged] == [8, 8, 8, 4]
    assert [row["turn"] for row in judged] == [1, 2, 1, 2]


def test_pairs_of_two_turns_are_won_in_both_orders(tmp_path, two_turns):
    def compare(body):
        if body["model"] != "judge":
            return said(body)
        text = body["messages"][-1]["content"]
        if "question b" in text:
            return "[[A]]"  # whoever comes first
        return "[[A]]" if text.index("<ours") < text.index("<base") else "[[B]]"

    endpoint = Endpoint(compare)
    with endpoint.serving():
        fields = two_turns | {"pairwise": True}
        (one,) = run(configured(tmp_path, "", endpoint.url, **fields))["scores"]
    assert (one["wins"], one["losses"], one["ties"], one["score"]) == (3, 0, 1, 87.5)
    assert one["biases"]["order_changes_verdict"] == 0.25
    rows = (tmp_path / "out/models/ours/pair.jsonl").read_text().splitlines()
    winners = [(row["g1_winner"], row["g2_winner"]) for row in map(json.loads, rows)]
    same = ("model_1", "model_1")
    assert winners == [same, ("model_1", "model_2"), same, same]


@pytest.fixture
def instructions(tmp_path):
    """alpaca_eval.json: the questions, and the baseline's outputs."""
    path = tmp_path / "alpaca_eval.json"
    rows = [
        {
            "instruction": f"do {n}",
            "output": f"<base on {n}>",
            "generator": "davinci",
            "dataset": "koala",
        }
        for n in range(4)
    ]
    path.write_text(json.dumps(rows))
    return {
        "questions": str(path),
        "baseline_answers": str(path),
        "suite": "alpaca_eval",
        "baseline": "",
    }


def test_preferences_come_from_both_orders_in_alpaca_evals_own_files(tmp_path, instructions):
    def prefer(body):
        if body["model"] != "judge":
            return said(body)
        text = body["messages"][-1]["content"]
        if "do 0" in text:
            return "[[B]]"  # whoever comes last: a draw
        if "do 1" in text:
            return "neither letter"
        return "[[A]]" if text.index("<us/ours") < text.index("<base") else "[[B]]"

    endpoint = Endpoint(prefer)
    with endpoint.serving():
        fields = instructions | {"model": ("us/ours",)}
        (one,) = run(configured(tmp_path, "", endpoint.url, **fields))["scores"]
    assert [one[n] for n in ("n_wins", "n_wins_base", "n_draws", "n_total", "failed")] == [
        2,
        0,
        1,
        3,
        2,
    ]
    assert [one["score"], one["win_rate"]] == pytest.approx([250 / 3] * 2)
    assert one["avg_length"] == len("<us/ours on do 0>")
    folder = tmp_path / "out/models/us%2Fours"
    again = read_annotations(str(folder / "annotations.json"))
    assert {name: one[name] for name in again} == again
    outputs = read_answers(folder / "model_outputs.json", model="us/ours")
    assert outputs.turns["do 3"] == ("<us/ours on do 3>",)


def test_weighted_preferences_are_the_judges_probabilities(tmp_path, instructions):
    def with_logprobs(body):
        # The judge takes the first output for better with probability 0.8, whatever it is.
        likely = {"A": 0.6, " A": 0.2, "B": 0.1, "C": 0.05, "b": 0.05}
        top = [{"token": t, "logprob": math.log(p)} for t, p in likely.items()]
        whole = completion("A", "length")
        whole["choices"][0]["logprobs"] = {"content": [{"token": "A", "top_logprobs": top}]}
        return JSONResponse(whole)

    endpoint = Endpoint(
        said, lambda body, before: with_logprobs(body) if body["model"] == "judge" else None
    )
    with endpoint.serving():
        fields = instructions | {"weighted": True}
        (one,) = run(configured(tmp_path, "", endpoint.url, **fields))["scores"]
    asked = next(body for body in endpoint.asked if body["model"] == "judge")
    assert (asked["max_tokens"], asked["logprobs"], asked["top_logprobs"]) == (1, True, 5)
    assert one["win_rate"] == pytest.approx(50)  # 8/9 first and 1/9 first
    assert one["biases"]["first_minus_second"] == pytest.approx(7 / 9)


def test_a_baseline_may_come_from_a_file(tmp_path, questions):
    answers = tmp_path / "gpt35.jsonl"
    rows = [{"question_id": n, "answer": "<file on question>"} for n in range(QUESTIONS)]
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
    endpoint = Endpoint(answer)
    with endpoint.serving():
        config = configured(
            tmp_path, questions, endpoint.url, baseline="", baseline_answers=str(answers)
        )
        result = run(config)
    assert (result["baseline"], result["scores"][0]["score"]) == ("gpt35", 200)
    assert {body["model"] for body in endpoint.asked} == {"ours", "judge"}
    with pytest.raises(UserError, match="are of gpt35, which is also a --model"):
        run(replace(config, model=("gpt35",)))


def test_a_full_disk_is_one_error_and_what_came_is_kept(tmp_path, questions, monkeypatch):
    add = Records.add

    def full(records, key, record):
        if len(records) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        add(records, key, record)

    endpoint = Endpoint(answer)
    with endpoint.serving():
        config = configured(tmp_path, questions, endpoint.url)
        with monkeypatch.context() as patched:
            patched.setattr(Records, "add", full)
            with pytest.raises(OSError, match="No space left"):
                run(config)
        assert recorded(tmp_path / "out") == 4
        assert run(config)["scores"][0]["score"] == 200


def test_openais_key_goes_to_openai_alone(tmp_path, questions, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "openais")
    monkeypatch.setenv("OCHAT_RAY_API_KEY", "own")
    seen = set()
    endpoint = Endpoint(answer)
    chat = endpoint.chat

    async def watched(request):
        seen.add(request.headers["authorization"])
        return await chat(request)

    endpoint.chat = watched
    with endpoint.serving():
        run(configured(tmp_path, questions, endpoint.url, limit=1))
    assert seen == {"Bearer own"}


def test_a_run_that_is_killed_goes_on_with_the_same_numbers_and_asks_nothing_twice(
    tmp_path, questions
):
    endpoint, begun = Endpoint(answer), []
    chat = endpoint.chat

    async def fifteen_for_the_killed(request):
        if request.headers["authorization"] == "Bearer killed":
            begun.append(request)
            if len(begun) > 15:
                await asyncio.sleep(3600)
        return await chat(request)

    endpoint.chat = fifteen_for_the_killed
    with endpoint.serving():
        options = (
            f"--questions {questions} --output {tmp_path / 'out'} --model ours --baseline base "
            f"--judge judge --url {endpoint.url} --judge-url {endpoint.url} --samples 2 --json"
        )
        command = [sys.executable, str(JOB), *options.split()]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=with_key("killed")
        )
        deadline = time.monotonic() + 60
        while len(begun) <= 15 or recorded(tmp_path / "out") < 15:
            time.sleep(0.01)
            assert process.poll() is None
            assert time.monotonic() < deadline
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert recorded(tmp_path / "out") == sum(endpoint.answered.values()) == 15
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, env=with_key("second")
        )
    assert json.loads(done.stdout.splitlines()[-1])["scores"][0]["score"] == 200
    assert sum(endpoint.answered.values()) == 2 * QUESTIONS + 4 * QUESTIONS


def with_key(key):
    return {**os.environ, "OCHAT_RAY_API_KEY": key}


def recorded(output):
    files = [output / name for name in ("answers.jsonl", "judgments.jsonl")]
    return sum(len(path.read_text().splitlines()) for path in files if path.exists())


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "there is no runs/demo/model; run `make demo`"),
        (["--judge", "j"], "--questions is needed"),
        (["--suite", "alpaca_eval"], "--questions is needed"),
        (["--suite", "mt_bench"], "--questions is needed"),
        (["--weighted", "--questions", "q", "--output", "o", "--model", "m", "--baseline", "b",
          "--judge", "j"], "--weighted is for --suite alpaca_eval"),
        (["score", "--suite", "alpaca_eval", "--annotations", "/nope"], "No such file"),
        (["--samples", "0"], "--samples must be at least 1"),
        (["score", "--retry", "failed", "empty"], "no effect on the step score"),
        (["--max-cost", "1"], "--max-cost needs --prices"),
        (["--body", "[]"], "--body []: a JSON object is needed"),
        (["--annotations", "x"], "--annotations is for"),
        (["score", "--suite", "alpaca_eval", "--annotations", "x", "--judge", "j"], "alone"),
        (["--pairwise"], "are for --suite mt_bench"),
        (["--url", "http://127.0.0.1:1/v1"], "--questions is needed"),
        (["--suite", "mt_bench", "--samples", "5"], "--samples is for --suite vicuna"),
        (["--suite", "mt_bench", "--questions", "q", "--output", "o", "--model", "m",
          "--baseline", "b", "--judge", "j"], "--baseline has no effect without --pairwise"),
        (["--pairwise", "--questions", "q", "--output", "o", "--model", "m", "--baseline", "b",
          "--judge", "j"], "are for --suite mt_bench"),
        (["--questions", "/nope", "--output", "o", "--model", "m", "--baseline", "b",
          "--judge", "j"], "cannot read /nope"),
        (["--questions", "q", "--output", "s3://b/o", "--model", "m", "--baseline", "b",
          "--judge", "j"], "kept on this machine"),
    ],
)  # fmt: skip
def test_wrong_use_is_one_line(arguments, line, tmp_path):
    done = subprocess.run(
        [sys.executable, str(JOB), *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 2
    assert line in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_alpaca_evals_numbers_come_out_of_its_own_file(tmp_path):
    path = tmp_path / "annotations.json"
    rows = [
        {"preference": p, "output_1": "x", "output_2": "abcd", "generator_2": "m"}
        for p in (2, 1, 1.5, None)
    ]
    path.write_text(json.dumps(rows))
    command = [sys.executable, str(JOB), "score", "--suite", "alpaca_eval", "--annotations"]
    done = subprocess.run([*command, str(path), "--json"], capture_output=True, check=True)
    other = subprocess.run(
        [*command, str(path), "--model", "n"], capture_output=True, text=True, check=False
    )
    assert (other.returncode, "is of m, not of n" in other.stderr) == (2, True)
    row = json.loads(done.stdout.splitlines()[-1])
    assert (row["win_rate"], row["standard_error"]) == (50, pytest.approx(50 / 3**0.5))
    assert [row[n] for n in ("n_wins", "n_wins_base", "n_draws", "n_total", "avg_length")] == [
        1,
        1,
        1,
        3,
        4,
    ]


def test_the_endpoint_of_these_tests_speaks_the_protocol():
    from openai.types.chat import ChatCompletion

    whole = completion("hi") | {"id": "1", "created": 1, "model": "m", "object": "chat.completion"}
    assert ChatCompletion.model_validate(whole).choices[0].message.content == "hi"
    assert isinstance(refusal(429), JSONResponse)


@pytest.mark.parametrize("fault", ["key", "key file", "baseline", "references", "proxy"])
def test_faults_of_the_judge_s_inputs_are_found_before_any_answer(
    tmp_path, questions, fault, monkeypatch
):
    fields = {}
    if fault == "key":
        monkeypatch.setenv("OCHAT_RAY_JUDGE_API_KEY", "schlüssel")
    elif fault == "key file":
        monkeypatch.setenv("OCHAT_RAY_JUDGE_API_KEY_FILE", str(tmp_path / "none"))
    elif fault == "baseline":
        (tmp_path / "b.jsonl").write_text('{"question_id": 0, "answer": "a", "model": "b"}\n')
        fields = {"baseline": "", "baseline_answers": str(tmp_path / "b.jsonl")}
    elif fault == "references":
        row = {"question_id": 1, "text": "1 + 1?", "category": "math"}
        questions.write_text(json.dumps(row) + "\n")
        fields = {"suite": "mt_bench", "baseline": "", "samples": 3}
    else:
        monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1")
    endpoint = Endpoint(answer)
    reasons = {
        "key": "characters that no key has",
        "key file": "KEY_FILE",
        "baseline": "5 of 6 questions",
        "references": "needs a reference",
        "proxy": "the proxy in the environment",
    }
    with endpoint.serving(), pytest.raises(UserError, match=reasons[fault]):
        run(configured(tmp_path, questions, endpoint.url, **fields))
    assert endpoint.asked == []


def test_a_baseline_without_points_is_not_called_unjudged(tmp_path, questions):
    def answered(body):
        return verdict(body).replace("5", "0") if body["model"] == "judge" else said(body)

    endpoint = Endpoint(answered)
    with endpoint.serving():
        config = configured(tmp_path, questions, endpoint.url, samples=1)
        result = run(config)
    assert result["scores"][0]["score"] is None
    assert "ours: the baseline has no points to compare with" in describe(config, result)
