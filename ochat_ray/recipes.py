"""Named recipes: all settings that a model type fixes, from context length to learning rate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from ochat_ray.errors import UserError

DEMO = "demo"
"""Recipe where none is given: a small real model, for two CPU cores."""

CHAT: Final = "chat"
"""Model type of a base model with its own chat template, and the recipe for it."""

ModelType = Literal["openchat", "openchat_8192", "opencoder", "chat"]
"""Template of a model: those of 2023, and "chat", the base model's own."""


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """Hyperparameters of a recipe, which `TrainConfig` describes.

    Defaults are OpenChat's of July 2023.
    """

    epochs: int = 5
    max_steps: int | None = None
    sequences_per_step: int | None = 128
    learning_rate: float = 2e-5
    embedding_learning_rate: float | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    warmup_ratio: float = 0.03
    max_tokens: int = 8192
    checkpoint_every: int = 25
    eval_tokens: int | None = None
    max_length: int | None = None
    gradient_checkpointing: bool = True
    sample_every: Literal["evaluation"] | None = None
    sample_tokens: int = 128
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of all stages for one model type.

    `model_type` names the template; `context_length` is in tokens; `keep_model` is the model label
    to keep, or "any".
    """

    name: str
    model_type: ModelType
    context_length: int
    keep_model: str = "GPT-4"
    blocked_words: tuple[str, ...] = ("openai",)
    extends_context: bool = False
    """True to train beyond the base model's context length.

    This extrapolates its rotary embeddings without scaling.
    """
    eval_ratio: float = 0.01
    num_workers: int = 8
    """Workers of training; 0: one per GPU of the cluster, or one without GPUs."""
    hyperparameters: Hyperparameters = field(default_factory=Hyperparameters)


RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name=DEMO,
            model_type="openchat",
            context_length=640,
            keep_model="any",
            num_workers=2,
            # Ten steps on two CPU cores must teach one new token, and no more. So the model trains
            # on short conversations, where ends of turns are frequent; the embeddings, of which the
            # new one starts as a mean with by far the lowest logit, get a higher learning rate; and
            # a large eps keeps Adam from moving parameters with near-zero gradients at that rate.
            hyperparameters=Hyperparameters(
                epochs=1,
                max_steps=10,
                sequences_per_step=None,
                learning_rate=3e-3,
                embedding_learning_rate=2.5e-2,
                betas=(0.9, 0.95),
                eps=1e-2,
                warmup_ratio=0.1,
                max_tokens=640,
                max_length=320,
                checkpoint_every=5,
                eval_tokens=2560,
                gradient_checkpointing=False,
            ),
        ),
        Recipe(name="openchat", model_type="openchat", context_length=2048),
        Recipe(
            name="openchat_8192",
            model_type="openchat_8192",
            context_length=8192,
            extends_context=True,
        ),
        Recipe(name="opencoder", model_type="opencoder", context_length=8192),
        Recipe(
            name=CHAT,
            model_type=CHAT,
            context_length=4096,
            keep_model="any",
            blocked_words=(),
            eval_ratio=0.05,
            num_workers=0,
            hyperparameters=Hyperparameters(
                epochs=3, sequences_per_step=16, sample_every="evaluation", sample_tokens=64
            ),
        ),
    )
}


def recipe(name: str) -> Recipe:
    """Return the recipe with this name.

    Raises:
        UserError: The name is unknown.
    """
    if name not in RECIPES:
        raise UserError(f"unknown recipe {name!r}; choose one of {', '.join(RECIPES)}")
    return RECIPES[name]


Content = Literal["data", "model", "evaluation"]
"""Content of a stage's output directory."""


def default_directory(name: str, content: Content) -> str:
    """Return the output directory of a recipe's stage where none is given."""
    return f"runs/{name}/{content}"
