"""Refused, empty, cut-off and retried replies: counted, shown, and asked again on demand."""

import json
import shutil

import httpx
import pytest

from ochat_ray.errors import UserError
from ochat_ray.evaluate import client as module
from ochat_ray.evaluate.steps import run
from tests.evaluate.test_client_replies import completion, failed
from tests.evaluate.test_steps import answer, configured

FILTERED = failed(400, "The prompt was filtered", code="content_filter")


@pytest.fixture
def evaluated(tmp_path, questions, monkeypatch):
    """Run an evaluation with a function in the network's place; its result and the bodies."""

    def evaluate(handler, **fields):
        sent = []

        def handle(request):
            if request.method == "GET":
                return httpx.Response(404)
            sent.append(json.loads(request.content))
            found = handler(sent[-1])
            return found if isinstance(found, httpx.Response) else httpx.Response(200, json=found)

        class Client(module.Client):
            def __init__(self, *arguments, **options):
                super().__init__(*arguments, first_pause_s=0.001, **options)
                self._http = httpx.AsyncClient(transport=httpx.MockTransport(handle))

        config = configured(tmp_path, questions, "http://m/v1", samples=1, **fields)
        config.check()
        return run(config, Client), sent

    return evaluate


def well(body):
    return completion(answer(body))


def unless(model, word, other):
    """Everything is well, but for a model's calls that end with a word or hold it."""

    def reply(body):
        held = body["model"] == model and word in body["messages"][-1]["content"]
        return other if held else well(body)

    return reply


def test_a_refused_judgment_is_failed_and_the_score_is_of_the_others(evaluated, tmp_path):
    result, _ = evaluated(unless("judge", "question 3", FILTERED))
    (one,) = result["scores"]
    assert (one["score"], one["failed"], one["judgments"], one["not_judged"]) == (200, 2, 12, 1)
    assert one["replies"]["refused"] == 2
    assert "The score of ours is of 5 of 6 questions" in " ".join(result["warnings"])
    assert "The prompt was filtered" in (tmp_path / "out/report.html").read_text()
    again, sent = evaluated(well)
    assert (sent, again["scores"]) == ([], result["scores"])
    whole, sent = evaluated(well, retry=("failed",))
    assert (len(sent), whole["scores"][0]["failed"]) == (2, 0)


def test_a_refused_answer_leaves_its_question_out(evaluated):
    result, sent = evaluated(unless("ours", "question 3", FILTERED))
    (one,) = result["scores"]
    assert (one["score"], one["judgments"], one["not_answered"]) == (200, 10, 1)
    assert (result["answers"]["ours"]["answered"], result["answers"]["ours"]["refused"]) == (5, 1)
    assert len(sent) == 12 + 10
    whole, sent = evaluated(well, retry=("failed",))
    assert (len(sent), whole["scores"][0]["judgments"]) == (1 + 2, 12)


def test_a_damaged_list_of_models_is_one_line(evaluated, tmp_path):
    evaluated(well)
    for damaged in ("{", "[]", '{"models": 3}'):
        (tmp_path / "out/models.json").write_text(damaged)
        with pytest.raises(UserError, match=r"models.json is damaged.*remove it: then the"):
            evaluated(well)


def test_a_model_that_refuses_all_ends_the_run_and_is_asked_again(evaluated):
    with pytest.raises(UserError, match="judge: all 12 calls were refused, first: 400 The prompt"):
        evaluated(unless("judge", "", FILTERED))
    _, sent = evaluated(well)
    assert len(sent) == 12


def test_empty_judgments_are_asked_again_and_empty_answers_on_demand(evaluated):
    nothing = completion(None, "length", reasoning_content="hm")

    def silent(body):
        return nothing if "question 3" in body["messages"][-1]["content"] else well(body)

    result, _ = evaluated(silent)
    (one,) = result["scores"]
    assert [one["replies"][name] for name in ("empty_replies", "cut_off")] == [2, 2]
    assert result["answers"]["ours"]["empty_replies"] == 1
    _, sent = evaluated(well)
    assert len(sent) == 2
    _, sent = evaluated(well, retry=("empty",))
    assert len(sent) == 2 + 2  # two answers, and their judgments


def test_unreadable_judgments_are_asked_again_on_demand(evaluated):
    result, _ = evaluated(unless("judge", "question 3", completion("I cannot say.")))
    assert result["scores"][0]["failed"] == 2
    assert evaluated(well)[1] == []
    result, sent = evaluated(well, retry=("unreadable",))
    assert (len(sent), result["scores"][0]["failed"]) == (2, 0)
    assert evaluated(well)[0]["scores"][0]["failed"] == 0


def test_retried_filtered_and_changed_replies_are_counted(evaluated):
    seen = set()

    def judge(body):
        if body["model"] != "judge":
            return well(body)
        if "temperature" in body:
            return failed(400, "Unsupported value: 'temperature'", param="temperature")
        first = body["messages"][-1]["content"]
        if "question 2" in first and first not in seen:
            seen.add(first)
            return httpx.Response(500)
        return completion(answer(body), "content_filter" if "question 1" in first else "stop")

    (one,) = evaluated(judge)[0]["scores"]
    replies = one["replies"]
    assert (replies["retried"], replies["filtered"]) == (2, 2)
    assert replies["changed"] == {"temperature": None}


def test_the_most_that_is_spent_is_not_exceeded(evaluated, tmp_path):
    prices = tmp_path / "prices.json"
    table = {name: {"prompt": 0, "completion": 1e6} for name in ("ours", "base", "judge")}
    prices.write_text(json.dumps(table))
    paid = []

    def charge(body):
        paid.append(body["max_tokens"])
        return completion(answer(body)) | {"usage": {"completion_tokens": body["max_tokens"]}}

    fields = {"prices": str(prices), "max_tokens": 1, "judge_max_tokens": 2}
    with pytest.raises(UserError, match=r"not made, since --max-cost 20 might be exceeded"):
        evaluated(charge, max_cost=20, **fields)
    assert sum(paid) == 20
    result, _ = evaluated(charge, max_cost=16, **fields)
    assert (result["scores"][0]["score"], sum(paid)) == (200, 12 + 24)
    prices.write_text("{}")
    with pytest.raises(UserError, match="--prices has no price of "):
        evaluated(charge, max_cost=16, limit=2, **fields | {"max_tokens": 3})


def test_further_fields_are_sent_and_null_leaves_one_out(evaluated):
    body = '{"reasoning_effort": "low", "temperature": null}'
    _, sent = evaluated(well, judge_body=body, body='{"seed": 1}', limit=1)
    judged = [one for one in sent if one["model"] == "judge"]
    assert all(one["reasoning_effort"] == "low" and "temperature" not in one for one in judged)
    assert [one["seed"] for one in sent if one["model"] != "judge"] == [1, 1]


@pytest.mark.parametrize("body", ["[1]", "{", '{"messages": []}', '{"model": "x"}'])
def test_fields_that_are_no_further_ones_are_refused(evaluated, body):
    with pytest.raises(UserError, match="--judge-body"):
        evaluated(well, judge_body=body)


def test_a_record_of_what_is_no_text_is_asked_again(evaluated, tmp_path):
    evaluated(well)
    path = tmp_path / "out/judgments.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["text"] = [{"type": "text", "text": "8 8"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result, sent = evaluated(well)
    assert (len(sent), result["scores"][0]["score"]) == (1, 200)


@pytest.mark.parametrize("name", ["report.html", "results.json", "results.md", "models.json"])
def test_a_file_that_no_evaluation_wrote_is_not_written_over(evaluated, tmp_path, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("[]")
    sent = []
    with pytest.raises(UserError, match=rf"{name} was not written by a run of evaluate"):
        evaluated(lambda body: sent.append(body) or well(body))
    assert (tmp_path / "out" / name).read_text() == "[]"
    assert sent == []


def test_files_of_a_version_without_a_record_are_known(evaluated, tmp_path):
    result, _ = evaluated(well)
    shutil.rmtree(tmp_path / "out/.run")
    again, sent = evaluated(well)
    assert (again["scores"], sent) == (result["scores"], [])
