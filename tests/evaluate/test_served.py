"""Our own server as the model, as the baseline and as the judge: the protocol fits."""

import httpx

from ochat_ray.evaluate.steps import run
from tests.evaluate.endpoint import served
from tests.evaluate.test_steps import configured
from tests.serve.script import Script, app_for


def test_a_model_may_judge_itself(tokenizer, tmp_path):
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"question_id": 1, "text": "why?", "category": "generic"}')
    app = app_for(tokenizer, Script(tokenizer, "8 6"), context_length=8192)
    with served(app) as url:
        fields = {"model": ("tiny",), "baseline": "tiny", "judge": "tiny"}
        result = run(configured(tmp_path, questions, url, **fields))
        assert httpx.get(url.replace("/v1", "/health")).status_code == 200
    (one,) = result["scores"]
    assert (one["score"], one["judgments"], one["failed"]) == (100, 4, 0)
    # It takes the first answer for better, whichever that is.
    assert one["biases"]["order_changes_verdict"] == 1
    report = (tmp_path / "out/report.html").read_text()
    assert "The judge is one of the models that it judges" in report
