"""What `jobs/train.py` can be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from ochat_ray.errors import UserError
from ochat_ray.recipes import recipe


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Fine-tune a model on the token tables that jobs/prepare.py wrote."""

    recipe: str = "demo"
    """One of demo, openchat, openchat_8192, opencoder."""
    data: str = ""
    """Run directory of jobs/prepare.py."""
    model: str = ""
    """Base model, a Hugging Face directory. The demo recipe has its own."""
    output: str = ""
    """Model directory to write; runs/RECIPE/model when not given."""
    num_workers: int = 8
    """Ray Train workers, one GPU each where there are GPUs, otherwise one CPU."""
    zero_stage: int = 3
    """DeepSpeed ZeRO stage: 1, 2 or 3."""
    epochs: int = 5
    max_steps: int | None = None
    """Stop after this many optimizer steps."""
    sequences_per_step: int | None = 128
    """Conversations an optimizer step over all workers; None fills one pack a worker."""
    max_tokens: int = 8192
    """Tokens of a pack, the unit of one forward pass on one worker."""
    max_length: int | None = None
    """Leave out conversations of more tokens, in training and in evaluation."""
    learning_rate: float = 2e-5
    embedding_learning_rate: float | None = None
    """Of input and output embeddings; None takes the learning rate."""
    warmup_ratio: float = 0.03
    """Share of the steps in which the learning rate rises."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of the first and second moment."""
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    """The gradient's norm is clipped at this."""
    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass instead of keeping them."""
    eval_tokens: int | None = None
    """Held-out tokens to evaluate on, before and after; None takes all."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Of the forward and backward pass; auto is bfloat16 where the hardware computes in it."""
    seed: int = 0
    overwrite: bool = False
    """Replace a complete model of another configuration in the output directory."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the result as one JSON object on the last line of standard output."""

    def check(self) -> None:
        """Raise a UserError for a value that no run can have."""
        if self.zero_stage not in (1, 2, 3):
            raise UserError(f"--zero-stage must be 1, 2 or 3, not {self.zero_stage}")
        for flag in (
            "num_workers",
            "epochs",
            "max_steps",
            "sequences_per_step",
            "max_tokens",
            "max_length",
        ):
            value = getattr(self, flag)
            if value is not None and value < 1:
                raise UserError(f"--{flag.replace('_', '-')} must be at least 1, not {value}")

    @classmethod
    def for_recipe(cls, name: str) -> TrainConfig:
        """The recipe's defaults; what the demo recipe fetches is not fetched yet."""
        chosen = recipe(name)
        h = chosen.hyperparameters
        return cls(
            recipe=name,
            data=f"runs/{name}/data",
            output=f"runs/{name}/model",
            num_workers=chosen.num_workers,
            epochs=h.epochs,
            max_steps=h.max_steps,
            sequences_per_step=h.sequences_per_step,
            max_tokens=h.max_tokens,
            max_length=h.max_length,
            learning_rate=h.learning_rate,
            embedding_learning_rate=h.embedding_learning_rate,
            warmup_ratio=h.warmup_ratio,
            betas=h.betas,
            eps=h.eps,
            weight_decay=h.weight_decay,
            max_grad_norm=h.max_grad_norm,
            gradient_checkpointing=h.gradient_checkpointing,
            eval_tokens=h.eval_tokens,
            seed=h.seed,
        )
