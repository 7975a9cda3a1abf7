"""The recipes, against OpenChat's published settings of July 2023."""

import pytest

from ochat_ray.data.config import PrepareConfig
from ochat_ray.errors import UserError
from ochat_ray.recipes import CHAT, RECIPES, recipe
from ochat_ray.tokenization.template import template_for
from ochat_ray.train.config import TrainConfig


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


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_makes_valid_configurations_and_has_a_template(name):
    PrepareConfig.for_recipe(name).check()
    train = TrainConfig.for_recipe(name)
    train.check()
    assert train.max_tokens >= recipe(name).context_length
    if recipe(name).model_type != CHAT:  # which has the tokenizer's own
        template_for(recipe(name).model_type)


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
