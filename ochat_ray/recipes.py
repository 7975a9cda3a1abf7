"""Named recipes: everything that a model type fixes, from context length to learning rate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ochat_ray.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """How a recipe trains. Defaults are OpenChat's of July 2023."""

    epochs: int = 5
    max_steps: int | None = None
    sequences_per_step: int | None = 128
    """Conversations an optimizer step, over all workers; None packs one full pack a worker."""
    learning_rate: float = 2e-5
    embedding_learning_rate: float | None = None
    """Of input and output embeddings; None takes `learning_rate`."""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    warmup_ratio: float = 0.03
    max_tokens: int = 8192
    """Tokens in a pack, the unit of one forward pass on one worker."""
    checkpoint_every: int = 25
    """Optimizer steps between checkpoints."""
    eval_tokens: int | None = None
    """Held-out tokens to evaluate on; None takes all."""
    max_length: int | None = None
    """Tokens of the longest conversation to use; None uses all."""
    gradient_checkpointing: bool = True
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One way from conversations to a model.

    `model_type` names the template; `context_length` is in tokens; `keep_model` is the model
    label to keep, or "any".
    """

    name: str
    model_type: Literal["openchat", "openchat_8192", "opencoder"]
    context_length: int
    keep_model: str = "GPT-4"
    extends_context: bool = False
    """Train beyond the base model's context, by plain extrapolation of its rotary embeddings."""
    eval_ratio: float = 0.01
    num_workers: int = 8
    hyperparameters: Hyperparameters = field(default_factory=Hyperparameters)


RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="demo",
            model_type="openchat",
            context_length=640,
            keep_model="any",
            num_workers=2,
            # Ten steps on two CPU cores must teach a new token, and no more. So it learns from
            # short conversations, which are all ends of turns; its embedding, which starts as a
            # mean and far below every other logit, learns faster than the rest; and a large eps
            # keeps Adam from moving at that rate what has next to no gradient.
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
    )
}


def recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        UserError: there is none.
    """
    if name not in RECIPES:
        raise UserError(f"unknown recipe {name!r}; choose one of {', '.join(RECIPES)}")
    return RECIPES[name]
