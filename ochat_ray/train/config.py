"""What `jobs/train.py` can be told."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import tyro

from ochat_ray.errors import UserError
from ochat_ray.recipes import recipe
from ochat_ray.train.option_checks import check_options
from ochat_ray.train.schedule import Schedule

Off = tyro.conf.FlagCreatePairsOff

OPERATIONAL = frozenset(
    """
    output resume overwrite dry_run gpu_memory_gib json allow_pickle num_workers num_workers_min
    zero_stage offload_optimizer offload_parameters deepspeed attention gradient_checkpointing
    checkpoint_every keep_checkpoints max_failures eval_every wandb mlflow
    from_checkpoint sample_every sample_prompts sample_tokens
    """.split()
)
"""Options that say how a run is done and not what comes out of it, rounding aside. A run may be
resumed with others of these."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Fine-tune a model on the token tables that jobs/prepare.py wrote."""

    recipe: str = "demo"
    """Recipe: demo, openchat, openchat_8192, opencoder, or chat for any base model."""
    data: str = ""
    """Run directory of jobs/prepare.py."""
    model: str = ""
    """Base model: a Hugging Face directory, its URI or hub name. The demo recipe has its own."""
    output: str = ""
    """Model directory to write; runs/RECIPE/model when not given."""

    num_workers: int = 8
    """Ray Train workers, one GPU each where there are GPUs, otherwise one CPU."""
    num_workers_min: int | None = None
    """Go on with as few workers as this when hosts are lost, and grow again when they are back."""
    max_failures: int = 3
    """How often training starts again from its last checkpoint after workers died."""
    checkpoint_every: int = 25
    """Optimizer steps between checkpoints, besides one at each epoch's end."""
    keep_checkpoints: int = 2
    """Checkpoints to keep, besides the one with the lowest held-out loss."""
    resume: Annotated[bool, Off] = False
    """Go on from the last checkpoint in the output directory, as the same run does by itself; for
    scripts that say so."""
    from_checkpoint: str | None = None
    """Continue from this checkpoint of the output directory, finished or not, with other options:
    its step, "latest", or "best" (lowest held-out loss). --epochs, --max-steps, the schedule,
    learning rates and --early-stopping may differ from before; the schedule starts again at that
    step and covers the remaining ones. Later checkpoints are removed."""
    overwrite: Annotated[bool, Off] = False
    """Give up another finished run, or an unfinished one, in the output directory."""
    dry_run: Annotated[bool, Off] = False
    """Print steps, packing, memory a device and one pack; start nothing and load no weights."""
    gpu_memory_gib: float | None = None
    """With --dry-run: what a GPU of the cluster has; without it, one of this machine is asked."""

    zero_stage: int = 3
    """DeepSpeed ZeRO stage: 1, 2 or 3."""
    offload_optimizer: Annotated[bool, Off] = False
    """Keep the optimizer's state in host memory (GPUs only)."""
    offload_parameters: Annotated[bool, Off] = False
    """Keep the parameters in host memory (GPUs and ZeRO stage 3 only)."""
    deepspeed: str | None = None
    """A DeepSpeed configuration in JSON, laid over the one that these options make."""
    attention: Literal["auto", "flash_attention_2", "sdpa", "eager"] = "auto"
    """auto is the first that is exact for the model, as tried on a tiny one: flash_attention_2
    (with flash-attn and GPUs), sdpa, eager."""
    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass instead of keeping them."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Of the forward and backward pass; auto is bfloat16 where the hardware computes in it."""
    allow_pickle: Annotated[bool, Off] = False
    """Open a base model that has no safetensors but pickled weights."""

    epochs: int = 5
    max_steps: int | None = None
    """Stop after this many optimizer steps."""
    sequences_per_step: int | None = 128
    """Conversations an optimizer step over all workers."""
    tokens_per_step: int | None = None
    """Tokens of an optimizer step over all workers, in full packs, instead of a number of
    conversations. With neither, one pack a worker."""
    max_tokens: int = 8192
    """Tokens of a pack, the unit of one forward pass on one worker."""
    max_length: int | None = None
    """Leave out conversations of more tokens, in training and in evaluation."""
    rope_scaling: Literal["linear", "dynamic", "yarn"] | None = None
    """How a model's rotary embeddings are stretched to a longer context."""
    loss: Literal["exact", "openchat-2023"] = "exact"
    """openchat-2023 is the mean of the packs' means, with a first learning rate of 0."""
    learning_rate: float = 2e-5
    embedding_learning_rate: float | None = None
    """Of input and output embeddings; None takes the learning rate."""
    schedule: Schedule = "cosine"
    """Learning rate after the warm-up: cosine or linear, falling over all remaining steps;
    constant; or wsd, constant and at the end linear."""
    warmup_ratio: float = 0.03
    """Share of the steps in which the learning rate rises."""
    min_rate_ratio: float = 0.0
    """Share of the learning rate at which the schedule ends."""
    wsd_decay_ratio: float | None = None
    """Share of the steps in which --schedule wsd falls; None is 0.1."""
    freeze: tuple[str, ...] = ()
    """Regular expressions: parameters whose names one of them matches anywhere are not trained."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of the first and second moment."""
    eps: float = 1e-8
    weight_decay: float = 0.0
    """Of matrices; norms and biases have none."""
    max_grad_norm: float = 1.0
    """The gradient's norm is clipped at this."""
    eval_every: int | None = None
    """Optimizer steps between evaluations, besides before the first and after each epoch."""
    eval_tokens: int | None = None
    """Held-out tokens to evaluate on; None takes all."""
    early_stopping: int | None = None
    """End the run after this many evaluations in a row without a lower held-out loss."""
    sample_every: int | None = None
    """Optimizer steps between samples: the model's answers to a few prompts, in samples.jsonl and
    TensorBoard; also before the first step and after the last."""
    sample_prompts: str | None = None
    """File with one prompt per line; None takes the first turns of four held-out conversations."""
    sample_tokens: int = 128
    """Tokens of a sample's answer."""
    seed: int = 0

    wandb: str | None = None
    """Project at Weights & Biases that gets the metrics, too."""
    mlflow: str | None = None
    """Experiment of MLflow that gets the metrics, too."""
    json: Annotated[bool, Off] = False
    """Print the result as one JSON object on the last line of standard output."""

    def check(self) -> None:
        """Raise a UserError for a value that no run can have, or that would have no effect."""
        if self.zero_stage not in (1, 2, 3):
            raise UserError(f"--zero-stage must be 1, 2 or 3, not {self.zero_stage}")
        for name, value in vars(self).items():
            numbers = value if isinstance(value, tuple) else (value,)
            if any(isinstance(n, float) and not math.isfinite(n) for n in numbers):
                raise UserError(f"{_flag(name)} must be a finite number, not {value}")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"{_flag(name)} must be at least {least}, not {value}")
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UserError(f"{_flag(name)} must be a positive number, not {value}")
        if not 0.0 <= self.warmup_ratio <= 1.0:
            raise UserError(f"--warmup-ratio must be in [0, 1], not {self.warmup_ratio}")
        if not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise UserError(f"--betas must be in [0, 1), not {self.betas}")
        if self.num_workers_min is not None and self.num_workers_min >= self.num_workers:
            raise UserError(
                f"--num-workers-min {self.num_workers_min} has no effect with --num-workers "
                f"{self.num_workers}; give a smaller one or none"
            )
        if self.gpu_memory_gib is not None and not self.dry_run:
            raise UserError("--gpu-memory-gib has no effect without --dry-run; leave it out")
        if self.offload_parameters and self.zero_stage != 3:
            raise UserError("--offload-parameters needs --zero-stage 3")
        if self.resume and self.overwrite:
            raise UserError("--resume goes on with a run and --overwrite gives it up; give one")
        if (
            self.tokens_per_step is not None
            and self.sequences_per_step is not None
            and self.sequences_per_step != recipe(self.recipe).hyperparameters.sequences_per_step
        ):
            raise UserError("--tokens-per-step and --sequences-per-step exclude each other")
        if self.tokens_per_step is not None and self.tokens_per_step % self.max_tokens:
            raise UserError(
                f"--tokens-per-step {self.tokens_per_step} must be a multiple of --max-tokens "
                f"{self.max_tokens}, the tokens of a pack"
            )
        for name in ("data", "output", "wandb", "mlflow"):
            if getattr(self, name) == "":  # the current directory, or a service's own default
                raise UserError(f"{_flag(name)} is empty; give a value, or leave it out")
        check_options(self)

    @property
    def step_size(self) -> dict[str, int]:
        """What `packing.steps` needs to know of the size of a step."""
        if self.tokens_per_step is not None:
            return {"packs_per_step": self.tokens_per_step // self.max_tokens}
        if self.sequences_per_step is not None:
            return {"sequences_per_step": self.sequences_per_step}
        return {"packs_per_step": self.num_workers}

    def identity(self) -> dict[str, Any]:
        """The options that decide what comes out, as JSON gives them back."""
        settings = {k: v for k, v in asdict(self).items() if k not in OPERATIONAL}
        for name in ("sequences_per_step", "tokens_per_step"):
            del settings[name]
        if self.early_stopping is not None:  # then evaluations decide where the run ends
            settings["eval_every"] = self.eval_every
        identity: dict[str, Any] = json.loads(json.dumps(settings | {"step": self.step_size}))
        return identity

    @classmethod
    def for_recipe(cls, name: str) -> TrainConfig:
        """The recipe's defaults; what the demo recipe fetches is not fetched yet."""
        chosen = recipe(name)
        return cls(
            recipe=name,
            data=f"runs/{name}/data",
            output=f"runs/{name}/model",
            num_workers=chosen.num_workers or 1,
            **asdict(chosen.hyperparameters),
        )


_LEAST = {
    "num_workers": 1,
    "num_workers_min": 1,
    "max_failures": 0,
    "checkpoint_every": 1,
    "keep_checkpoints": 1,
    "epochs": 1,
    "max_steps": 1,
    "sequences_per_step": 1,
    "tokens_per_step": 1,
    "max_tokens": 1,
    "max_length": 1,
    "eval_every": 1,
    "eval_tokens": 1,
    "early_stopping": 1,
    "sample_every": 1,
    "sample_tokens": 1,
    "weight_decay": 0,
    "seed": 0,
}

_POSITIVE = ("learning_rate", "embedding_learning_rate", "eps", "max_grad_norm", "gpu_memory_gib")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
