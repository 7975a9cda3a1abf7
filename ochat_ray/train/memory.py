"""Memory plan of a training run: bytes per device for each use.

It follows DeepSpeed 0.19's allocations for this project's configuration: parameters in bfloat16 or
float32, gradients accumulated and reduced in float32, PyTorch's AdamW. Source: its files
`runtime/zero/stage3.py`, `stage_1_and_2.py`, `runtime/bf16_optimizer.py`, and its memory estimates
(Rajbhandari et al., 2020, arXiv:1910.02054). The activations of a layer are those that autograd
was measured to keep for Llama and Qwen2 in transformers 5; GPT-NeoX keeps somewhat less.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ochat_ray.errors import UserError
from ochat_ray.train.chunked_loss import CHUNK_LOGITS, chunk_rows
from ochat_ray.train.config import TrainConfig
from ochat_ray.train.flops import ModelShape
from ochat_ray.train.quantization import SCALE_BYTES

LIVE_PARAMETERS = 1_000_000_000
"""DeepSpeed's default of stage3_max_live_parameters and of sub_group_size."""

REDUCE_BUCKET = 100_000_000
"""DeepSpeed's reduce_bucket_size in elements, allocated completely for any model. Its default, five
times as many, takes 2 GB, since our gradients are communicated in float32."""

USABLE = 0.92
"""Share of a device's memory that a plan may take: CUDA, NCCL and fragmentation need the rest."""

LONGEST_PLANNED = 1 << 24
"""Maximum tokens of a pack that `longest_pack` considers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryPlan:
    """Bytes on one device; `host` are bytes per device that offloading moves to host memory.

    `weights`, `gradients` and `optimizer` are always allocated. `communication` (parameters that
    ZeRO-3 has gathered, a dequantized layer, gradient buckets), `activations` and `logits` are
    allocated in a forward and backward pass, `update` in the optimizer step after it. `loading` are
    quantized weights before ZeRO-3 partitions them. `keeps` is whether the process keeps memory
    that the passes have freed. It does on a CPU, where glibc does not return blocks of less than
    32 MB, such as activations and most gathered parameters.
    """

    weights: int
    gradients: int
    optimizer: int
    communication: int
    activations: int
    logits: int
    update: int
    host: int
    loading: int = 0
    keeps: bool = False

    @property
    def total(self) -> int:
        """Peak memory of the device in bytes."""
        held = self.weights + self.gradients + self.optimizer
        passes = self.communication + self.activations
        if self.keeps:
            step = passes + max(self.logits, self.update)
        else:
            step = max(passes + self.logits, self.update)
        return max(held + step, self.loading)


def fits(plan: MemoryPlan, device_bytes: int) -> bool:
    """Return whether a plan fits a device, with a reserve for CUDA, NCCL and fragmentation."""
    return plan.total <= USABLE * device_bytes


def longest_pack(plan_of: Callable[[int], MemoryPlan], device_bytes: int) -> int:
    """Return the maximum tokens of a pack, or of a single conversation, whose plan fits a device.

    `plan_of` returns the plan for a number of tokens. 0 if not even one token fits.
    """
    fitting, too_many = 0, 1
    while fits(plan_of(too_many), device_bytes) and too_many < LONGEST_PLANNED:
        fitting, too_many = too_many, 2 * too_many
    while too_many - fitting > 1:
        middle = (fitting + too_many) // 2
        if fits(plan_of(middle), device_bytes):
            fitting = middle
        else:
            too_many = middle
    return fitting


def estimate(
    shape: ModelShape,
    *,
    world_size: int,
    zero_stage: int,
    bf16: bool,
    max_tokens: int,
    gradient_checkpointing: bool,
    offload_optimizer: bool = False,
    offload_parameters: bool = False,
    attention: str = "sdpa",
    supervised_tokens: int | None = None,
    reduce_bucket: int = REDUCE_BUCKET,
    cuda: bool = True,
) -> MemoryPlan:
    """Estimate the memory of one of `world_size` devices.

    Args:
        shape: sizes of the model.
        world_size: number of workers.
        zero_stage: ZeRO stage.
        bf16: compute in bfloat16 instead of float32.
        max_tokens: tokens of a pack.
        gradient_checkpointing: recompute activations.
        offload_optimizer: keep the optimizer's state in host memory.
        offload_parameters: keep the parameters in host memory.
        attention: transformers' name of the attention implementation.
        supervised_tokens: tokens of a pack for which logits are computed; None means all.
        reduce_bucket: DeepSpeed's reduce_bucket_size in elements.
        cuda: train on GPUs.
    """
    trained = shape.trained_parameters
    share = -(-trained // world_size)
    quantized = shape.quantized_parameters
    partitions = world_size if zero_stage == 3 else 1
    frozen = -(-(shape.frozen_parameters - quantized) // partitions)
    width = 2 if bf16 else 4
    complete = shape.weight_bytes(width)
    scales = math.ceil(SCALE_BYTES * quantized)
    # torch.empty takes memory immediately on a GPU, and when it is written to on a CPU.
    bucket = reduce_bucket if cuda else min(reduce_bucket, trained)
    loading = 0
    # AdamW updates all parameters at once, with one temporary tensor, or two on a CPU.
    temporary = 4 if cuda else 8
    if zero_stage == 3:
        weights, gradients = width * (share + frozen), 4 * share
        loading = complete + scales if quantized else 0
        # In float32 the optimizer updates the parameters themselves, if they are on its device.
        master = bf16 or offload_optimizer != offload_parameters
        # Gathered parameters; the bucket in float32 and its copy in rank order.
        communication = min(complete, width * LIVE_PARAMETERS) + 8 * bucket
        # One sub-group after the other, with a copy of its gradient.
        update = (4 + temporary) * min(share, LIVE_PARAMETERS)
    elif zero_stage == 2:
        weights, gradients, master = width * (trained + frozen), 4 * share, True
        # Two alternating buckets if communication overlaps; in bfloat16 also a float32 copy.
        communication = (2 if cuda else 1) * width * bucket + (4 * bucket if bf16 else 0)
        if not bf16:  # gradients of a pack, before they are added to those of the step
            communication += 4 * share
        update = (4 if bf16 else 0) * share + temporary * share
    else:
        # In bfloat16 there are gradients in bfloat16 in addition to those in float32.
        weights, master = width * (trained + frozen), True
        gradients = (6 if bf16 else 4) * trained
        communication = min(4 * bucket, 4 * trained) if bf16 else 8 * bucket
        update = (4 if bf16 else 8) * share
    optimizer = (12 if master else 8) * share
    weights += -(-quantized // (2 * partitions)) + scales  # of which each device has all
    if quantized:
        communication += width * shape.hidden * shape.intermediate

    host = 0
    if offload_optimizer:
        host += optimizer + 4 * share
        optimizer = update = 0
        if zero_stage > 1:
            host += gradients
            gradients = 0
    if offload_parameters:
        host += weights
        weights = 0

    return MemoryPlan(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        communication=communication,
        activations=max_tokens
        * _activations_per_token(shape, width, max_tokens, attention, gradient_checkpointing),
        logits=_loss(shape, width, max_tokens if supervised_tokens is None else supervised_tokens),
        update=update,
        host=host,
        loading=loading,
        keeps=not cuda,
    )


def _loss(shape: ModelShape, width: int, tokens: int) -> int:
    """Return the bytes of the logits of `tokens` tokens and of the head's weight gradient."""
    head = shape.vocabulary * shape.hidden
    if tokens <= chunk_rows(shape.vocabulary):
        # The float32 log-probabilities, and two gradients of their size in the backward pass; the
        # forward pass takes no more.
        return 12 * shape.vocabulary * tokens + width * head
    # A chunk's logits twice in float32 and once in bfloat16; the weight's gradient is accumulated
    # in float32 from parts in bfloat16.
    narrow = 2 if width == 2 else 0
    return (8 + narrow) * CHUNK_LOGITS + (4 + 2 * narrow) * head


def layer_activations(shape: ModelShape, width: int, tokens: int, attention: str) -> int:
    """Return the bytes per token that autograd keeps for one layer, in packs of `tokens` tokens.

    `width` is the size of the dtype in bytes. Two norms compute in float32 (together 8 bytes per
    element of the hidden state); in addition there are their outputs, queries, keys, values, and
    the inputs of the matrix multiplications in attention and the feed-forward part.
    """
    feed_forward = (4 if shape.gated else 2) * shape.intermediate
    keys_and_values = 2 * shape.kv_heads * shape.head_size
    return (
        8 * shape.hidden
        + width * (6 * shape.hidden + keys_and_values + feed_forward)
        + _scores(shape, width, tokens, attention)
    )


def _activations_per_token(
    shape: ModelShape, width: int, tokens: int, attention: str, gradient_checkpointing: bool
) -> int:
    layer = layer_activations(shape, width, tokens, attention)
    # Temporary gradients in the feed-forward part, or in attention's scores.
    gradients = max(
        width * (3 if shape.gated else 2) * shape.intermediate,
        _scores(shape, width, tokens, attention),
    )
    if gradient_checkpointing:  # the input of each layer, and one recomputed layer
        return shape.layers * width * shape.hidden + layer + gradients
    return shape.layers * layer + gradients


def _scores(shape: ModelShape, width: int, tokens: int, attention: str) -> int:
    """Return the bytes per token of attention's probabilities or mask, which grow with the pack."""
    if attention == "eager":  # softmax in float32, and its copy in the compute dtype
        return shape.heads * tokens * (4 + (width if width < 4 else 0))
    return width * tokens if attention == "sdpa" else 0


def estimate_run(
    config: TrainConfig,
    shape: ModelShape,
    *,
    world_size: int,
    bf16: bool,
    attention: str,
    cuda: bool = True,
) -> MemoryPlan:
    """Estimate the memory per device of a training configuration.

    `bf16` and `attention` are the values to which its "auto" resolves.
    """
    return estimate(
        shape,
        world_size=world_size,
        zero_stage=config.zero_stage,
        bf16=bf16,
        max_tokens=config.max_tokens,
        gradient_checkpointing=config.gradient_checkpointing,
        offload_optimizer=config.offload_optimizer,
        offload_parameters=config.offload_parameters,
        attention=attention,
        cuda=cuda,
    )


def check_holds(plan: MemoryPlan, device_bytes: int, world_size: int) -> None:
    """Raise a UserError if weights, gradients and optimizer, or their loading, exceed a device.

    The other parts of the plan are less certain and are not checked.
    """
    if plan.loading > device_bytes:
        raise UserError(
            f"before ZeRO-3 partitions the quantized model, it takes {plan.loading / 2**30:,.1f} "
            f"GiB on each of {world_size} workers, which have {device_bytes / 2**30:,.1f} GiB; use "
            "devices with more memory, or a smaller model"
        )
    held = plan.weights + plan.gradients + plan.optimizer
    if held > device_bytes:
        raise UserError(
            f"weights, gradients and optimizer take {held / 2**30:,.1f} GiB on each of "
            f"{world_size} workers, which have {device_bytes / 2**30:,.1f} GiB; use more workers, "
            "--zero-stage 3 or --offload-optimizer"
        )
