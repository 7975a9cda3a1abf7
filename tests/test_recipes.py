"""The recipes, against OpenChat's published settings of July 2023."""

import inspect
import re
from pathlib import Path

import pytest
import yaml

from ochat_ray.data.config import PrepareConfig
from ochat_ray.errors import UserError
from ochat_ray.recipes import CHAT, DEMO, RECIPES, default_directory, recipe
from ochat_ray.serve.args import ServeArgs
from ochat_ray.tokenization.template import template_for
from ochat_ray.train.config import TrainConfig

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("name", "context"), [("openchat", 2048), ("openchat_8192", 8192), ("opencoder", 8192)]
)
def test_july_2023(name, context):
    prepare, train = PrepareConfig.for_recipe(name), TrainConfig.for_recipe(name)
    assert prepare.max_length == context
    assert prepare.keep_model == "GPT-4"
    assert recipe(name).model_type == name
    assert (train.epochs, train.sequences_per_step, train.max_steps) == (5, 128, None)
    assert (train.learning_rate, train.betas, train.eps) == (2e-5, (0.9, 0.999), 1e-8)
    assert (train.weight_decay, train.max_grad_norm, train.warmup_ratio) == (0.0, 1.0, 0.03)
    assert train.embedding_learning_rate is None
    assert train.gradient_checkpointing
    assert train.seed == 0


@pytest.mark.parametrize("config", [PrepareConfig, TrainConfig])
def test_the_help_names_every_recipe(config):
    first = inspect.getsource(config).split('"""')[3]
    assert re.split(", | or ", first.removeprefix("Recipe: "))[:-1] == [*RECIPES][:-1]
    assert f"or {CHAT} for any base model" in first


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_makes_valid_configurations_and_has_a_template(name):
    PrepareConfig.for_recipe(name).check()
    train = TrainConfig.for_recipe(name)
    train.check()
    assert train.max_tokens >= recipe(name).context_length
    if recipe(name).model_type != CHAT:  # which has the tokenizer's own
        template_for(recipe(name).model_type)


def test_the_table_of_the_training_page_has_the_values_of_all_recipes():
    page = (ROOT / "docs/training.md").read_text()
    head, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in page[page.index("| | openchat |") :].split("\n\n")[0].splitlines()
    ]
    assert sorted(head[1:]) == sorted(RECIPES)
    for position, name in enumerate(head[1:], 1):
        of = {row[0]: row[position] for row in rows}
        chosen, values = recipe(name), recipe(name).hyperparameters
        assert of["template"] == ("the base's own" if name == CHAT else chosen.model_type)
        assert of["steps"].endswith("steps" if values.max_steps else "epochs")
        expected = {
            "context, tokens": [chosen.context_length],
            "conversations per step": [values.sequences_per_step],
            "maximum tokens per conversation": [values.max_length],
            "learning rate": [values.learning_rate, values.embedding_learning_rate],
            "steps": [values.max_steps or values.epochs],
            "warm-up, share of the steps": [values.warmup_ratio],
        }
        assert set(of) == {"template", *expected}
        for row, numbers in expected.items():
            written = [float(n) for n in re.findall(r"[0-9][0-9.e-]*", of[row])]
            assert written == [n for n in numbers if n is not None], (name, row)


def test_the_page_of_own_models_has_the_values_of_the_chat_recipe():
    page, chosen = (ROOT / "docs/your-own-model.md").read_text(), recipe(CHAT)
    assert f"shorter than {chosen.context_length:,} tokens" in page
    assert {3: "three epochs"}[chosen.hyperparameters.epochs] in page


def test_the_server_serves_the_demos_model_by_default():
    (application, *_) = yaml.safe_load((ROOT / "serve.yaml").read_text())["applications"]
    assert ServeArgs().model == application["args"]["model"] == default_directory(DEMO, "model")


def test_every_hyperparameter_reaches_the_training_configuration():
    chosen = recipe("demo").hyperparameters
    train = TrainConfig.for_recipe("demo")
    assert {k: getattr(train, k) for k in vars(chosen)} == vars(chosen)


@pytest.mark.parametrize(
    "wrong", [{"zero_stage": 0}, {"num_workers": -1}, {"max_steps": 0}, {"max_length": 0}]
)
def test_impossible_values_are_one_clear_line(wrong):
    with pytest.raises(UserError, match="must be"):
        TrainConfig(**wrong).check()
    with pytest.raises(UserError, match="unknown recipe"):
        recipe("nope")
