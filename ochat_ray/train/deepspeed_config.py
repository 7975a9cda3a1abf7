"""The DeepSpeed configuration that a training configuration means."""

from __future__ import annotations

from typing import Any

from ochat_ray.train.config import TrainConfig


def deepspeed_config(
    config: TrainConfig, *, world_size: int, bf16: bool, cuda: bool
) -> dict[str, Any]:
    """A DeepSpeed configuration as its JSON documentation defines it.

    The loop sets the boundary between optimizer steps and the loss's scale itself, since steps
    differ in their number of packs; so DeepSpeed is told of one micro-batch a step.
    """
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "train_batch_size": world_size,
        "gradient_clipping": config.max_grad_norm,
        "bf16": {"enabled": bf16},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "zero_optimization": {
            "stage": config.zero_stage,
            "overlap_comm": cuda,  # needs CUDA streams
            "contiguous_gradients": True,
            "reduce_scatter": True,
            "stage3_gather_16bit_weights_on_model_save": False,
        },
        # The optimizer is PyTorch's own AdamW: DeepSpeed's CPU one is compiled at run time.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
