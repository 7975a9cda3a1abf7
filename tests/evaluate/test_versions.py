"""Models of one name that are not the same, and answers that are."""

import json
from dataclasses import replace

import pytest

from ochat_ray.errors import UserError
from ochat_ray.evaluate.steps import run
from tests.evaluate.conftest import QUESTIONS
from tests.evaluate.endpoint import Endpoint
from tests.evaluate.test_steps import answer, configured

ANSWERS, JUDGMENTS = 2 * QUESTIONS, 2 * 2 * QUESTIONS


def trained(name, digest):
    training = {"recipe": "openchat", "data_digest": "d1", "digest": digest}
    return {"id": name, "object": "model", "created": 1, "training": training}


def test_a_model_that_was_trained_again_is_asked_again(tmp_path, questions):
    endpoint = Endpoint(answer)
    endpoint.models = [trained("ours", "first"), {"id": "base", "created": 5}]
    with endpoint.serving():
        config = configured(tmp_path, questions, endpoint.url)
        result = run(config)
        # One whose entry changes and says no digest, as vLLM's, is the same model.
        endpoint.models[1]["created"] = 6
        run(config)
        assert len(endpoint.asked) == ANSWERS + JUDGMENTS
        endpoint.models[0] = trained("ours", "second")
        again = run(config)
    # It says the same, so that its judgments are known.
    assert len(endpoint.asked) == ANSWERS + JUDGMENTS + QUESTIONS
    assert result["models"]["ours"]["training"]["digest"] == "first"
    assert again["models"]["ours"]["training"]["digest"] == "second"
    assert "data_digest d1, digest second" in (tmp_path / "out/report.html").read_text()


def test_a_judge_that_was_trained_again_judges_again(tmp_path, questions):
    endpoint = Endpoint(answer)
    endpoint.models = [trained("judge", "first")]
    with endpoint.serving():
        run(configured(tmp_path, questions, endpoint.url))
        endpoint.models = [trained("judge", "second")]
        run(configured(tmp_path, questions, endpoint.url))
    assert len(endpoint.asked) == ANSWERS + 2 * JUDGMENTS


def test_what_is_known_stays_when_the_endpoint_says_nothing(tmp_path, questions):
    endpoint = Endpoint(answer)
    endpoint.models = [trained("ours", "first")]
    with endpoint.serving():
        config = configured(tmp_path, questions, endpoint.url)
        run(config)
        endpoint.models = None
        again = run(config)
    assert len(endpoint.asked) == ANSWERS + JUDGMENTS
    assert again["models"]["ours"]["training"]["digest"] == "first"


@pytest.mark.parametrize("models", ["none", [None, 3, {"id": "ours", "training": "by hand"}]])
def test_a_list_of_models_may_be_anything(tmp_path, questions, models):
    endpoint = Endpoint(answer)
    endpoint.models = models
    with endpoint.serving():
        assert run(configured(tmp_path, questions, endpoint.url))["scores"][0]["score"] == 200


def test_models_that_say_the_same_share_their_judgments(tmp_path, questions):
    def same(body):
        return "9 3" if body["model"] == "judge" else "the same"

    endpoint = Endpoint(same)
    with endpoint.serving():
        result = run(configured(tmp_path, questions, endpoint.url, model=("ours", "theirs")))
    assert len(endpoint.asked) == 3 * QUESTIONS + JUDGMENTS
    assert [(one["score"], one["judgments"]) for one in result["scores"]] == [(100, 24)] * 2


def test_the_control_shows_answers_beside_themselves(tmp_path, questions):
    def judge(body):
        text = body["messages"][-1]["content"]
        alone = text.count("<ours on") == 2
        return "7 6" if alone and "question 2" in text else "8 8" if alone else "10 5"

    endpoint = Endpoint(lambda body: judge(body) if body["model"] == "judge" else answer(body))
    with endpoint.serving():
        config = configured(tmp_path, questions, endpoint.url, control=True)
        (one,) = run(config)["scores"]
        assert run(config)["scores"] == [one]
    # A question, two samples, one order: both would be the same.
    assert len(endpoint.asked) == ANSWERS + JUDGMENTS + 2 * QUESTIONS
    assert (one["judgments"], one["score"]) == (JUDGMENTS, 100)
    assert one["control"] == {"called_equal": 5 / 6, "first_minus_second": pytest.approx(1 / 6)}
    assert "with itself" in (tmp_path / "out/report.html").read_text()
    kept = (tmp_path / "out/judgments.jsonl").read_text().splitlines()
    assert sum("control" in json.loads(line) for line in kept) == 2 * QUESTIONS


def test_ratings_have_no_control(tmp_path):
    config = configured(tmp_path, "q", "u", suite="mt_bench", baseline="", control=True, samples=3)
    with pytest.raises(UserError, match="--control has no effect without --pairwise"):
        config.check()


def served_from(name, root):
    return {"id": name, "owned_by": "vllm", "root": root}


def test_another_checkpoint_or_endpoint_under_one_name_is_asked_again(tmp_path, questions):
    endpoint, other = Endpoint(answer), Endpoint(answer)
    endpoint.models = [served_from("ours", "/step-1000")]
    with endpoint.serving(), other.serving():
        config = configured(tmp_path, questions, endpoint.url)
        run(config)
        asked = len(endpoint.asked)
        endpoint.models = [served_from("ours", "/step-2000")]
        run(config)
        run(config)
        assert len(endpoint.asked) == asked + QUESTIONS
        run(replace(config, url=other.url))
        assert len(other.asked) == 2 * QUESTIONS  # the baseline's as well
        # The first one's answers are still known.
        endpoint.models = [served_from("ours", "/step-1000")]
        run(config)
        run(replace(config, url=other.url))
        run(replace(config, judge_url=other.url))
    assert len(endpoint.asked) == asked + QUESTIONS
    assert len(other.asked) == 2 * QUESTIONS + JUDGMENTS


def test_a_directory_of_an_earlier_version_is_known_where_nothing_changed(tmp_path, questions):
    endpoint, other = Endpoint(answer), Endpoint(answer)
    endpoint.models = [served_from("ours", "/step-1000")]
    with endpoint.serving(), other.serving():
        config = configured(tmp_path, questions, endpoint.url)
        run(config)
        (asked, path) = (len(endpoint.asked), tmp_path / "out/models.json")
        earlier = {"models": {"ours": served_from("ours", "/step-1000")}, "judges": {}}
        path.write_text(json.dumps(earlier))
        run(config)
        assert len(endpoint.asked) == asked
        path.write_text(json.dumps(earlier))
        endpoint.models = [served_from("ours", "/step-2000")]
        run(config)
        assert len(endpoint.asked) == asked + QUESTIONS
        path.write_text(json.dumps(earlier))
        run(replace(config, url=other.url))
    assert len(other.asked) == 2 * QUESTIONS
