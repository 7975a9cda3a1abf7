"""The DeepSpeed configuration that a training configuration means, and a user's own laid over it.

Keys are those of https://www.deepspeed.ai/docs/config-json/.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ochat_ray.errors import UserError
from ochat_ray.train.config import TrainConfig
from ochat_ray.train.memory import REDUCE_BUCKET

_OWNED = {
    "train_batch_size": "--sequences-per-step or --tokens-per-step",
    "train_micro_batch_size_per_gpu": "--max-tokens",
    "gradient_accumulation_steps": "--sequences-per-step or --tokens-per-step",
    "gradient_clipping": "--max-grad-norm",
    "bf16.enabled": "--dtype",
    "fp16.enabled": "--dtype",
    "amp.enabled": "--dtype",
    "optimizer": "--learning-rate, --betas, --eps and --weight-decay",
    "scheduler": "--learning-rate and --warmup-ratio",
    "zero_optimization.stage": "--zero-stage",
    "checkpoint.load_universal": "--resume",
    "data_types.grad_accum_dtype": "nothing: gradients are accumulated in float32",
}
"""Keys that an option of ours decides, and that option."""


def deepspeed_config(
    config: TrainConfig, *, world_size: int, bf16: bool, cuda: bool, universal: bool = False
) -> dict[str, Any]:
    """The whole configuration; `universal` opens a checkpoint of another number of workers.

    The loop sets the boundary between optimizer steps and the loss's scale itself, since steps
    differ in their number of packs; so DeepSpeed is told of one micro-batch a step.

    Raises:
        UserError: the user's own JSON cannot be read, or contradicts an option.
    """
    zero: dict[str, Any] = {
        "stage": config.zero_stage,
        "overlap_comm": cuda,  # needs CUDA streams
        "contiguous_gradients": True,
        "reduce_scatter": True,
        "reduce_bucket_size": REDUCE_BUCKET,
        "stage3_gather_16bit_weights_on_model_save": False,
    }
    if config.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if config.offload_parameters:
        zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    ours = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "train_batch_size": world_size,
        "gradient_clipping": config.max_grad_norm,
        "bf16": {"enabled": bf16},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "zero_optimization": zero,
        # The optimizer is PyTorch's AdamW; DeepSpeed's CPU one is compiled at run time, and worth
        # it only where the state lies in host memory.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "checkpoint": {"load_universal": universal},
        "steps_per_print": 10**9,
    }
    if config.deepspeed is None:
        return ours
    return _merged(ours, read_override(config.deepspeed, ours))


def read_override(path: str, ours: dict[str, Any]) -> dict[str, Any]:
    """A user's DeepSpeed JSON, held against the configuration that the options make.

    Raises:
        UserError: it is not a JSON object, or gives a key that an option decides another value.
    """
    try:
        override = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"--deepspeed: cannot read {path}: {error}") from error
    if not isinstance(override, dict):
        raise UserError(f"--deepspeed: {path} must hold one JSON object")
    decided = dict(_leaves(ours))
    for key, value in _leaves(override):
        option = next((o for k, o in _OWNED.items() if key == k or key.startswith(f"{k}.")), None)
        # transformers' "auto" leaves a key to the trainer.
        if option is None or value in ("auto", decided.get(key, False)):
            continue
        raise UserError(
            f"--deepspeed: {path} sets {key} to {json.dumps(value)}, but that is decided by "
            f"{option}; leave the key out"
        )
    return override


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _merged(ours: dict[str, Any], override: dict[str, Any]) -> dict[str, Any]:
    result = dict(ours)
    for key, value in override.items():
        if isinstance(value, dict):
            result[key] = _merged(result.get(key, {}), value)
        elif value != "auto":
            result[key] = value
    return result
