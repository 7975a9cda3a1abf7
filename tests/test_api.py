"""The four functions of the package are the commands."""

import inspect
import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from ochat_ray import api
from ochat_ray.command_line import parse
from ochat_ray.data.config import PrepareConfig
from ochat_ray.errors import UserError
from ochat_ray.evaluate.config import EvaluateConfig
from ochat_ray.jobs.command import main
from ochat_ray.train.config import TrainConfig

CASES = [
    (
        "prepare",
        PrepareConfig.for_recipe,
        {"recipe": "chat", "input": ["a.jsonl", Path("b")], "tokenizer": Path("base"),
         "eval_ratio": 0, "merge_turns": True},
        "--recipe chat --input a.jsonl b --tokenizer base --eval-ratio 0 --merge-turns",
    ),
    (
        "prepare",
        PrepareConfig.for_recipe,
        {"recipe": "chat", "template_arguments": {"thinks": False, "styles": ["é"]}},
        '--recipe chat --template-arguments {"thinks":false,"styles":["é"]}',
    ),
    (
        "train",
        TrainConfig.for_recipe,
        {"recipe": "openchat", "model": "base", "max_steps": 3, "betas": (0.8, 0.9),
         "freeze": "embed", "early_stopping": None},
        "--recipe openchat --model base --max-steps 3 --betas 0.8 0.9 --freeze embed",
    ),
    (
        "evaluate",
        lambda _recipe: EvaluateConfig(),
        {"step": "answer", "questions": "q.jsonl", "model": ["a", "b"], "retry": "failed"},
        "answer --questions q.jsonl --model a b --retry failed",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("stage", "for_recipe", "options", "command"), CASES)
def test_a_function_does_what_its_command_does(monkeypatch, stage, for_recipe, options, command):
    seen = []

    def work(config):
        seen.append(config)
        return {"done": True}

    monkeypatch.setattr(f"ochat_ray.jobs.{stage}.work", work)
    assert getattr(api, stage)(**options) == {"done": True}
    assert seen == [parse(for_recipe, command.split(), stage)]


@pytest.mark.parametrize(("stage", "for_recipe"), [case[:2] for case in CASES])
def test_every_option_of_a_command_is_an_argument(monkeypatch, stage, for_recipe):
    monkeypatch.setattr(f"ochat_ray.jobs.{stage}.work", vars)
    default = for_recipe("demo")
    for field in fields(default):
        if field.name != "json":
            value = getattr(default, field.name)
            result = getattr(api, stage)(**{field.name: value})
            assert result[field.name] == value


def test_a_function_returns_what_json_prints(tmp_path, capsys):
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps([{"preference": 2.0, "output_1": "No.", "output_2": "So it is."}]))
    options = {"step": "score", "suite": "alpaca_eval", "annotations": path}
    command = ["evaluate", "score", "--suite", "alpaca_eval", "--annotations", str(path), "--json"]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == api.evaluate(**options)


@pytest.mark.parametrize(
    ("stage", "options", "message"),
    [
        ("prepare", {"inputs": "x"}, "prepare has no option 'inputs'; did you mean input?"),
        ("train", {"zzz": 1}, "train has no option 'zzz'; options are recipe, data, model, "),
        ("train", {"json": True}, "train has no option 'json'; "),
        ("train", {"max_steps": "many"}, "train: max_steps='many': Input should be a valid int"),
        ("train", {"dtype": "int8"}, "train: dtype='int8': Input should be 'auto', 'bfloat16' or"),
        ("train", {"recipe": "x"}, "unknown recipe 'x'; choose one of demo, "),
        ("evaluate", {"judges": "x"}, "evaluate has no option 'judges'; did you mean judge?"),
        ("serve", {"modle": "x"}, "unknown argument 'modle'; arguments are model, engine, "),
        ("serve", {"model": Path("/nowhere")}, "no model directory at /nowhere; "),
    ],
)
def test_a_wrong_option_is_named_in_one_line(stage, options, message):
    with pytest.raises(UserError) as error:
        getattr(api, stage)(**options)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("stage", ["prepare", "train", "serve", "evaluate"])
def test_each_function_has_an_example(stage):
    text = inspect.getdoc(getattr(api, stage))
    assert ">>> from ochat_ray import api" in text
    assert f"api.{stage}(" in text


def test_import_is_light():
    code = (
        "import sys; from ochat_ray import api; api.prepare; "
        "print([m for m in ('torch', 'transformers', 'ray', 'pydantic', 'tyro') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
