"""DeepSpeed configuration of a training configuration, with a user's JSON file merged in.

Keys are those of https://www.deepspeed.ai/docs/config-json/.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ochat_ray.errors import UserError
from ochat_ray.train.config import TrainConfig
from ochat_ray.train.lora_options import quantizes_base
from ochat_ray.train.memory import REDUCE_BUCKET

_OWNED = {
    "train_batch_size": "--sequences-per-step or --tokens-per-step",
    "train_micro_batch_size_per_gpu": "--max-tokens",
    "gradient_accumulation_steps": "--sequences-per-step or --tokens-per-step",
    "gradient_clipping": "--max-grad-norm",
    "bf16.enabled": "--dtype",
    "fp16.enabled": "--dtype",
    "amp.enabled": "--dtype",
    "torch_autocast.enabled": "--dtype",
    "optimizer": "--learning-rate, --betas, --eps and --weight-decay",
    "scheduler": "--learning-rate and --warmup-ratio",
    "zero_optimization.stage": "--zero-stage",
    "checkpoint.load_universal": "--resume",
    "data_types.grad_accum_dtype": "this project: gradients are accumulated in float32",
}
"""Keys that are set by our options, and the options."""

_OPERATIONAL = re.compile(
    r"(steps_per_print|wall_clock_breakdown|memory_breakdown|dump_state|log_level|timers|aio"
    r"|disable_python_gc|flops_profiler|comms_logger|tensorboard|wandb|comet|csv_monitor|compile"
    r"|checkpoint|activation_checkpointing|zero_allow_untested_optimizer"
    r"|zero_force_ds_cpu_optimizer)(\..*)?"
    r"|zero_optimization\.(.*bucket_size|stage3_.*|overlap_.*|contiguous_gradients|reduce_scatter"
    r"|sub_group_size|offload_.*|cpu_offload.*|round_robin_gradients|allgather_.*|use_.*"
    r"|prefetch_.*|param_persistence_.*|model_persistence_.*|max_live_.*|max_reuse_.*"
    r"|gather_16bit_.*|module_granularity_.*|memory_efficient_.*|pipeline_loading_checkpoint"
    r"|load_from_fp32_weights|legacy_stage1|zero_hpz_.*|mics_.*|log_trace_.*)"
)
"""Keys that affect how DeepSpeed computes and reports, but not the result."""


def decisive_override(override: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a user's JSON that may affect the result, by key ("a.b").

    They are part of a run's identity.
    """
    return {
        key: value
        for key, value in sorted(_leaves(override))
        if value != "auto" and _owner(key) is None and not _OPERATIONAL.fullmatch(key)
    }


def deepspeed_config(
    config: TrainConfig,
    override: Mapping[str, Any] | None,
    *,
    world_size: int,
    bf16: bool,
    cuda: bool,
    universal: bool = False,
) -> dict[str, Any]:
    """Return the complete configuration; `universal` loads a checkpoint of other workers.

    `override` is the result of `read_override`.

    The engine sets the boundary between optimizer steps and the scale of the loss itself, since
    the number of packs differs between steps; so DeepSpeed's configuration has one micro-batch per
    step.

    Raises:
        UserError: the user's JSON contradicts an option, or offloads a quantized base.
    """
    assert (override is None) == (config.deepspeed is None), "the file was not read"
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
        # The optimizer is PyTorch's AdamW; DeepSpeed's CPU version is compiled at run time, which
        # only pays off if the state is in host memory.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "checkpoint": {"load_universal": universal},
        "steps_per_print": 10**9,
    }
    if override is None:
        return ours
    _check_override(override, ours, str(config.deepspeed))
    merged = _merged(ours, override)
    if quantizes_base(config) and _offloads_parameters(merged["zero_optimization"]):
        raise UserError(
            f"--deepspeed: {config.deepspeed} offloads parameters (zero_optimization."
            "offload_param), which does not work with --lora quantize=nf4; remove it"
        )
    return merged


def _offloads_parameters(zero: Mapping[str, Any]) -> bool:
    section = zero.get("offload_param")
    device = section.get("device", "none") if isinstance(section, dict) else "none"
    return device != "none" or bool(zero.get("cpu_offload_param"))


def _check_override(override: Mapping[str, Any], ours: dict[str, Any], path: str) -> None:
    """Check a user's JSON against the configuration from the options.

    Raises:
        UserError: it changes a key that an option sets, or has a value in place of a section or the
            reverse.
    """
    if mixed := _first_mixed(ours, override):
        raise UserError(
            f"--deepspeed: {path} has a single value in place of the section {mixed}, or a section "
            "in place of its value"
        )
    decided = dict(_leaves(ours))
    for key, value in _leaves(override):
        option = _owner(key)
        # transformers' "auto" leaves a key to the trainer.
        if option is None or value in ("auto", decided.get(key, False)):
            continue
        raise UserError(
            f"--deepspeed: {path} sets {key} to {json.dumps(value)}, but the key is set by "
            f"{option}; remove it"
        )


def read_override(path: str | None) -> dict[str, Any] | None:
    """Return the content of a user's DeepSpeed JSON; None without a file.

    Raises:
        UserError: it cannot be read, or is not a JSON object.
    """
    if path is None:
        return None
    try:
        override = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"--deepspeed: cannot read {path}: {error}") from error
    if not isinstance(override, dict):
        raise UserError(f"--deepspeed: {path} must hold one JSON object")
    return override


def _owner(key: str) -> str | None:
    """Return the option that sets a key."""
    return next((o for k, o in _OWNED.items() if key == k or key.startswith(f"{k}.")), None)


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _first_mixed(ours: Mapping[str, Any], override: Mapping[str, Any]) -> str | None:
    """Return the first key that is a section in one of the two and a value in the other."""
    for key, value in override.items():
        if key in ours and value != "auto":
            if isinstance(ours[key], dict) != isinstance(value, dict):
                return key
            if isinstance(value, dict) and (below := _first_mixed(ours[key], value)):
                return f"{key}.{below}"
    return None


def _merged(ours: dict[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(ours)
    for key, value in override.items():
        if isinstance(value, dict):
            result[key] = _merged(result.get(key, {}), value)
        elif value != "auto":
            result[key] = value
    return result
