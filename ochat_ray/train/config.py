"""Command-line options of `jobs/train.py`."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import tyro

from ochat_ray.command_line import flag
from ochat_ray.errors import UserError
from ochat_ray.recipes import DEMO, Hyperparameters, Recipe, default_directory, recipe
from ochat_ray.train.lora_options import lora_of
from ochat_ray.train.option_checks import check_options, check_workers
from ochat_ray.train.schedule import Schedule

Off = tyro.conf.FlagCreatePairsOff

OPERATIONAL = frozenset(
    """
    output resume overwrite dry_run gpu_memory_gib json allow_pickle num_workers num_workers_min
    zero_stage offload_optimizer offload_parameters deepspeed attention gradient_checkpointing
    checkpoint_every keep_checkpoints max_failures eval_every wandb mlflow
    from_checkpoint sample_every sample_prompts sample_tokens check_devices
    """.split()
)
"""Options that do not affect the result, up to rounding; they may change when a run resumes."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Fine-tune a model on the token tables of jobs/prepare.py."""

    recipe: str = DEMO
    """Recipe: demo, openchat, openchat_8192, opencoder, or chat for any base model."""
    data: str = ""
    """Run directory of jobs/prepare.py."""
    model: str = ""
    """Base model: a Hugging Face directory, URI or hub name. The demo recipe downloads its own."""
    output: str = ""
    """Model directory to write; default: runs/RECIPE/model."""

    num_workers: int = Recipe.num_workers
    """Ray Train workers: one GPU each if the cluster has GPUs, otherwise one CPU each. 0: as
    many as the cluster has GPUs, or one."""
    num_workers_min: int | None = None
    """Continue with at least this many workers after node failures, and scale up again when nodes
    return. Default: --num-workers."""
    max_failures: int = 3
    """Maximum restarts from the latest checkpoint after worker failures."""
    check_devices: bool = True
    """Check each GPU for about 20 seconds before each start of the workers: memory patterns, matrix
    products against the CPU's, and the bandwidth of copies."""
    checkpoint_every: int = Hyperparameters.checkpoint_every
    """Optimizer steps between checkpoints; also one at the end of each epoch."""
    keep_checkpoints: int = 2
    """Number of latest checkpoints to keep, in addition to the one with the lowest held-out
    loss."""
    resume: Annotated[bool, Off] = False
    """Resume from the latest checkpoint. This is the default if the output directory holds one of
    the same run; the flag makes it explicit."""
    from_checkpoint: str | None = None
    """Continue a run in the output directory, complete or not, from this checkpoint and with other
    options: a step, "latest", or "best" (lowest held-out loss). --epochs, --max-steps, the
    schedule, learning rates and --early-stopping may change; the schedule restarts at this step
    and covers the remaining ones. Later checkpoints are removed."""
    overwrite: Annotated[bool, Off] = False
    """Replace another run in the output directory, complete or not."""
    dry_run: Annotated[bool, Off] = False
    """Print steps, packing, memory per device and one pack, without starting the training or
    loading weights."""
    gpu_memory_gib: float | None = None
    """With --dry-run: memory per GPU in GiB. Default: that of this machine's GPU, if there is
    one."""

    zero_stage: int = 3
    """DeepSpeed ZeRO stage: 1, 2 or 3."""
    offload_optimizer: Annotated[bool, Off] = False
    """Keep the optimizer's state in host memory (GPUs only)."""
    offload_parameters: Annotated[bool, Off] = False
    """Keep the parameters in host memory (GPUs and ZeRO stage 3 only)."""
    deepspeed: str | None = None
    """JSON file with a DeepSpeed configuration, merged into the one from these options."""
    attention: Literal["auto", "flash_attention_2", "sdpa", "eager"] = "auto"
    """Attention implementation. auto takes the first that is exact for the model, tested on a tiny
    model of its kind: flash_attention_2 (with flash-attn and GPUs), sdpa, eager."""
    gradient_checkpointing: bool = Hyperparameters.gradient_checkpointing
    """Recompute activations in the backward pass instead of keeping them."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Data type of the forward and backward pass; auto is bfloat16 if the hardware supports it."""
    allow_pickle: Annotated[bool, Off] = False
    """Load a base model that has pickled weights and no safetensors."""

    epochs: int = Hyperparameters.epochs
    """Passes over the training split."""
    max_steps: int | None = Hyperparameters.max_steps
    """Stop after this many optimizer steps."""
    sequences_per_step: int | None = Hyperparameters.sequences_per_step
    """Conversations per optimizer step, over all workers."""
    tokens_per_step: int | None = None
    """Tokens per optimizer step over all workers, in full packs, instead of a number of
    conversations. Without both options: one pack per worker."""
    max_tokens: int = Hyperparameters.max_tokens
    """Maximum tokens per pack, the unit of one forward pass on one worker."""
    max_length: int | None = Hyperparameters.max_length
    """Exclude longer conversations (in tokens) from training and evaluation."""
    rope_scaling: Literal["linear", "dynamic", "yarn"] | None = None
    """Scaling of the model's rotary embeddings for a longer context."""
    loss: Literal["exact", "openchat-2023"] = "exact"
    """exact: the weighted mean over all tokens of a step. openchat-2023: the mean of the packs'
    means, with a learning rate of 0 in the first step."""
    learning_rate: float = Hyperparameters.learning_rate
    """Peak learning rate of AdamW."""
    embedding_learning_rate: float | None = Hyperparameters.embedding_learning_rate
    """Peak learning rate of input and output embeddings; default: --learning-rate."""
    schedule: Schedule = "cosine"
    """Learning rate after the warm-up: cosine or linear decay over all remaining steps; constant;
    or wsd (warm-up, stable, decay), which is constant and decays linearly at the end."""
    warmup_ratio: float = Hyperparameters.warmup_ratio
    """Share of the steps in which the learning rate warms up."""
    min_rate_ratio: float = 0.0
    """Learning rate at the end of the schedule, as a share of its peak."""
    wsd_decay_ratio: float | None = None
    """Share of the steps in which --schedule wsd decays; default: 0.1."""
    lora: str | None = None
    """Train low-rank adapters through peft and freeze the base model: r=16,alpha=32,targets=NAMES.
    Targets are all-linear (default) or names joined by +; rslora=true and dora=true are variants;
    quantize=nf4 quantizes the frozen base to 4 bits (QLoRA). The output directory then holds the
    adapter."""
    merge: Annotated[bool, Off] = False
    """With --lora: export the whole model with the adapters merged into it, not the adapters."""
    freeze: tuple[str, ...] = ()
    """Regular expressions; parameters with a match anywhere in the name are not trained."""
    betas: tuple[float, float] = Hyperparameters.betas
    """AdamW's decay rates of the first and second moment."""
    eps: float = Hyperparameters.eps
    """AdamW's epsilon."""
    weight_decay: float = Hyperparameters.weight_decay
    """AdamW's weight decay of matrices; norms and biases have none."""
    max_grad_norm: float = Hyperparameters.max_grad_norm
    """Norm at which the gradient is clipped."""
    eval_every: int | None = None
    """Optimizer steps between evaluations; also one before the first step and after each epoch."""
    eval_tokens: int | None = Hyperparameters.eval_tokens
    """Maximum held-out tokens per evaluation; default: all."""
    early_stopping: int | None = None
    """Stop after this many evaluations in a row without a lower held-out loss."""
    sample_every: int | Literal["evaluation"] | None = Hyperparameters.sample_every
    """Optimizer steps between samples, or "evaluation" for samples at every evaluation: answers of
    the model to a few prompts, in samples.jsonl, report.html and TensorBoard; also before the first
    step and after the last. None writes none."""
    sample_prompts: str | None = None
    """File with one prompt per line; default: the first turns of four held-out conversations."""
    sample_tokens: int = Hyperparameters.sample_tokens
    """Maximum tokens per sampled answer."""
    seed: int = Hyperparameters.seed
    """Seed of the order of conversations and of samples of the held-out split."""

    wandb: str | None = None
    """Weights & Biases project that also gets the metrics."""
    mlflow: str | None = None
    """MLflow experiment that also gets the metrics."""
    json: Annotated[bool, Off] = False
    """Print the result as one JSON object on the last line of standard output."""

    def check(self) -> None:
        """Raise a UserError for a value that is invalid or would have no effect."""
        if self.zero_stage not in (1, 2, 3):
            raise UserError(f"--zero-stage must be 1, 2 or 3, not {self.zero_stage}")
        for name, value in vars(self).items():
            numbers = value if isinstance(value, tuple) else (value,)
            if any(isinstance(n, float) and not math.isfinite(n) for n in numbers):
                raise UserError(f"{flag(name)} must be a finite number, not {value}")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if isinstance(value, int | float) and value < least:
                raise UserError(f"{flag(name)} must be at least {least}, not {value}")
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UserError(f"{flag(name)} must be a positive number, not {value}")
        if not 0.0 <= self.warmup_ratio <= 1.0:
            raise UserError(f"--warmup-ratio must be in [0, 1], not {self.warmup_ratio}")
        if not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise UserError(f"--betas must be in [0, 1), not {self.betas}")
        check_workers(self)
        if self.gpu_memory_gib is not None and not self.dry_run:
            raise UserError("--gpu-memory-gib has no effect without --dry-run; leave it out")
        if self.offload_parameters and self.zero_stage != 3:
            raise UserError("--offload-parameters needs --zero-stage 3")
        if self.resume and self.overwrite:
            raise UserError("--resume continues a run and --overwrite discards it; give one")
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
            if getattr(self, name) == "":  # would be the current directory, or a service's default
                raise UserError(f"{flag(name)} is empty; give a value, or leave it out")
        check_options(self)

    @property
    def step_size(self) -> dict[str, int]:
        """Arguments of `packing.steps` for the size of a step."""
        if self.tokens_per_step is not None:
            return {"packs_per_step": self.tokens_per_step // self.max_tokens}
        if self.sequences_per_step is not None:
            return {"sequences_per_step": self.sequences_per_step}
        return {"packs_per_step": self.num_workers}

    def identity(self) -> dict[str, Any]:
        """Return the options that affect the result, as plain JSON values."""
        settings = {k: v for k, v in asdict(self).items() if k not in OPERATIONAL}
        for name in ("sequences_per_step", "tokens_per_step"):
            del settings[name]
        lora = lora_of(self)
        settings["lora"] = None if lora is None else str(lora)
        for name in ("lora", "merge"):
            if not settings[name]:  # as in runs of versions without these options
                del settings[name]
        if self.early_stopping is not None:  # evaluations then decide when the run ends
            settings["eval_every"] = self.eval_every
        identity: dict[str, Any] = json.loads(json.dumps(settings | {"step": self.step_size}))
        return identity

    @classmethod
    def for_recipe(cls, name: str) -> TrainConfig:
        """Return a recipe's defaults; the base model of the demo recipe is not downloaded yet."""
        chosen = recipe(name)
        return cls(
            recipe=name,
            data=default_directory(name, "data"),
            output=default_directory(name, "model"),
            num_workers=chosen.num_workers,
            **asdict(chosen.hyperparameters),
        )


_LEAST = {
    "num_workers": 0,
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
