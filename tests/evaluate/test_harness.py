"""Tasks of lm-eval; a small program stands in for it and writes its files."""

import json
import os
import sys

import pytest

from ochat_ray.errors import UserError
from ochat_ray.evaluate.config import EvaluateConfig
from ochat_ray.evaluate.harness import parts_of, run_tasks
from ochat_ray.evaluate.stats import Part
from tests.evaluate.endpoint import Endpoint

STAND_IN = """#!{python}
import json, os, sys
from pathlib import Path
arguments = dict(zip(sys.argv[1::1], sys.argv[2::1]))
given = json.loads(arguments["--model_args"])
if given["model"] == "broken":
    sys.exit("no such model")
folder = Path(arguments["--output_path"], "any")
folder.mkdir(parents=True, exist_ok=True)
(folder / "argv.json").write_text(json.dumps([sys.argv[1:], os.environ["OPENAI_API_KEY"]]))
right = 3 if given["model"] == "ours" else 1
rows = [
    {{"doc_id": n, "doc_hash": str(n), "filter": f, "metrics": ["exact_match"],
      "exact_match": float(n < right + (f == "flexible-extract"))}}
    for n in range(4) for f in ("strict-match", "flexible-extract")
]
stamp = "2026-11-30T09-00-00.0"
(folder / f"samples_gsm8k_{{stamp}}.jsonl").write_text("\\n".join(map(json.dumps, rows)) + "\\n")
(folder / f"results_{{stamp}}.json").write_text(json.dumps({{
    "results": {{"gsm8k": {{"exact_match,strict-match": right / 4}}}},
    "versions": {{"gsm8k": 3.0}}, "n-shot": {{"gsm8k": 5}}, "lm_eval_version": "0.4.13"}}))
"""


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "lm_eval"
    path.write_text(STAND_IN.format(python=sys.executable))
    path.chmod(0o755)
    return str(path)


def configured(tmp_path, program, url="http://127.0.0.1:9/v1", **fields):
    fields = {"model": ("ours", "theirs")} | fields
    return EvaluateConfig(
        step="tasks", tasks=("gsm8k",), url=url, output=str(tmp_path / "out"), lm_eval=program,
        lm_eval_args="--num_fewshot 0", limit=4, max_concurrency=7, **fields,
    )  # fmt: skip


def test_scores_by_question_come_from_lm_evals_samples(tmp_path, program, monkeypatch):
    monkeypatch.setenv("OCHAT_RAY_API_KEY", "secret")
    endpoint = Endpoint(lambda body: "")
    endpoint.models = [{"id": "ours", "training": {"digest": "d1"}}]
    with endpoint.serving():
        config = configured(tmp_path, program, endpoint.url)
        config.check()
        result = run_tasks(config)
    (group,) = result["groups"]
    scores = {row["name"]: row["score"] for row in group["rows"]}
    assert scores == {"ours": 75, "theirs": 25}
    assert group["unit"] == "% exact_match,strict-match"
    (difference,) = group["settings"][0]["differences"]
    assert difference["score"] == 50
    ours = group["rows"][0]
    assert ours["metrics"]["exact_match,flexible-extract"]["score"] == 100
    assert ours["training"]["digest"] == "d1"
    assert "exact_match,flexible-extract" in (tmp_path / "out/comparison.html").read_text()
    (said, *_) = [json.loads(p.read_text()) for p in (tmp_path / "out").rglob("argv.json")]
    arguments, key = said
    assert key == "secret"
    assert "secret" not in " ".join(arguments)
    assert arguments[-2:] == ["--num_fewshot", "0"]
    assert arguments[arguments.index("--limit") + 1] == "4"
    given = json.loads(arguments[arguments.index("--model_args") + 1])
    assert given["base_url"] == f"{endpoint.url}/chat/completions"
    assert given["num_concurrent"] == 7


def test_a_metric_may_have_many_values_per_question():
    row = {
        "doc_id": 1,
        "filter": "none",
        "metrics": ["a", "b"],
        "a": [True, False, True],
        "b": True,
    }
    assert parts_of([row]) == {"a,none": {"1": Part(200, 3)}, "b,none": {"1": Part(100, 1)}}


def test_without_lm_eval_nothing_is_run(tmp_path):
    with pytest.raises(UserError, match=r'not found; .*pip install "lm-eval\[api,ifeval\]"'):
        run_tasks(configured(tmp_path, str(tmp_path / "missing")))


def test_a_failure_of_lm_eval_is_one_line(tmp_path, program):
    endpoint = Endpoint(lambda body: "")
    with endpoint.serving(), pytest.raises(UserError, match="lm_eval failed for broken"):
        run_tasks(configured(tmp_path, program, endpoint.url, model=("broken",)))
    assert not os.path.exists(tmp_path / "out/results.json")


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"judge": "gpt-4"}, "--judge has no effect on the step tasks"),
        ({"model": ()}, "tasks needs --tasks, --model and --output"),
    ],
)
def test_wrong_options_are_rejected(tmp_path, fields, line):
    with pytest.raises(UserError, match=line):
        configured(tmp_path, "lm_eval", **fields).check()


def test_a_task_is_a_name():
    with pytest.raises(UserError, match="is no name of a task"):
        EvaluateConfig(step="tasks", tasks=("../x",), model=("m",), output="o").check()
    with pytest.raises(UserError, match="are for the step tasks"):
        EvaluateConfig(tasks=("gsm8k",)).check()
