"""Options of train: invalid values, values without effect, and the identity."""

from dataclasses import replace

import pytest

from ochat_ray.errors import UserError
from ochat_ray.train.config import OPERATIONAL, TrainConfig
from ochat_ray.train.derived import identity_of


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"zero_stage": 4}, "--zero-stage must be 1, 2 or 3"),
        ({"output": ""}, "--output is empty; give a value"),
        ({"wandb": ""}, "--wandb is empty"),
        ({"num_workers": -1}, "--num-workers must be at least 0"),
        ({"max_failures": -1}, "--max-failures must be at least 0"),
        ({"learning_rate": 0.0}, "--learning-rate must be a positive number"),
        *(
            ({name: float(value)}, f"--{name.replace('_', '-')} must be a finite number")
            for name, kind in TrainConfig.__annotations__.items()
            if kind.startswith("float")
            for value in ("nan", "inf", "-inf")
        ),
        ({"betas": (0.9, float("nan"))}, "--betas must be a finite number"),
        ({"gpu_memory_gib": -1.0, "dry_run": True}, "--gpu-memory-gib must be a positive number"),
        ({"betas": (0.9, 1.0)}, "--betas must be in"),
        ({"warmup_ratio": 1.5}, "--warmup-ratio must be in"),
        ({"num_workers_min": 8}, "--num-workers-min 8 has no effect"),
        ({"offload_parameters": True, "zero_stage": 2}, "needs --zero-stage 3"),
        ({"resume": True, "overwrite": True}, "give one"),
        ({"tokens_per_step": 16384, "sequences_per_step": 64}, "exclude each other"),
        ({"tokens_per_step": 10_000}, "must be a multiple of --max-tokens 8192"),
        ({"gpu_memory_gib": 80.0}, "no effect without --dry-run"),
        ({"min_rate_ratio": 1.0}, r"--min-rate-ratio must be in \[0, 1\)"),
        ({"min_rate_ratio": 0.1, "schedule": "constant"}, "no effect with --schedule constant"),
        ({"wsd_decay_ratio": 0.1}, "no effect without --schedule wsd"),
        ({"wsd_decay_ratio": 0.0, "schedule": "wsd"}, r"must be in \(0, 1\]"),
        ({"wsd_decay_ratio": 0.9, "schedule": "wsd", "warmup_ratio": 0.2}, "at most 1"),
        ({"freeze": ("(",)}, "is not a regular expression"),
        ({"early_stopping": 0}, "--early-stopping must be at least 1"),
        ({"from_checkpoint": "0"}, "a checkpoint's step, latest or best"),
        ({"from_checkpoint": "latest", "overwrite": True}, "--overwrite exclude each other"),
        ({"sample_tokens": 64}, "--sample-tokens has no effect without --sample-every"),
        ({"sample_prompts": "x"}, "--sample-prompts has no effect without --sample-every"),
    ],
)
def test_wrong_use_is_one_clear_line(changes, line):
    config = replace(TrainConfig.for_recipe("openchat"), **changes)
    with pytest.raises(UserError, match=line):
        config.check()


@pytest.mark.parametrize("name", ["demo", "openchat", "openchat_8192", "opencoder"])
def test_recipes_are_usable(name):
    TrainConfig.for_recipe(name).check()


def test_tokens_per_step_replaces_the_recipes_number_of_conversations():
    config = replace(TrainConfig.for_recipe("openchat"), tokens_per_step=65536)
    config.check()
    assert config.step_size == {"packs_per_step": 8}


def test_the_identity_has_exactly_the_options_that_affect_the_result():
    config = TrainConfig.for_recipe("openchat")
    same = replace(
        config, num_workers=3, attention="eager", zero_stage=2, checkpoint_every=1, output="x"
    )
    assert same.identity() == config.identity()
    assert replace(config, seed=1).identity() != config.identity()
    assert replace(config, eval_every=5).identity() == config.identity()
    stops = replace(config, early_stopping=2)
    assert replace(stops, eval_every=5).identity() != stops.identity()
    # A new option is added to one of the two.
    assert set(TrainConfig.__dataclass_fields__) - OPERATIONAL == {
        "recipe", "data", "model", "dtype", "epochs", "max_steps", "sequences_per_step",
        "tokens_per_step", "max_tokens", "max_length", "rope_scaling", "loss", "learning_rate",
        "embedding_learning_rate", "schedule", "warmup_ratio", "min_rate_ratio", "wsd_decay_ratio",
        "lora", "merge", "freeze", "betas", "eps", "weight_decay", "max_grad_norm", "eval_tokens",
        "early_stopping", "seed",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("recipe", "scaling"), [("demo", None), ("demo", "yarn"), ("openchat_8192", None)]
)
def test_the_identity_has_the_context_to_which_embeddings_are_extended(recipe, scaling):
    config = replace(TrainConfig.for_recipe(recipe), rope_scaling=scaling)
    one, two = (
        identity_of(config, {"digest": "d", "context_length": context}, None, "m")
        for context in (4096, 8192)
    )
    assert (one != two) == (config != TrainConfig.for_recipe("demo"))
