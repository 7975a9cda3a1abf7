"""Sizes of a model, FLOPs of its training, and peak FLOPs of devices.

A forward and backward pass takes 6 FLOPs per token for each parameter of a matrix multiplication,
and 12 x layers x attention width x n / 2 more for causal attention, where n is the length of the
token's conversation (Kaplan et al., 2020, arXiv:2001.08361, table 1; Chowdhery et al., 2022,
arXiv:2204.02311, appendix B, which counts attention without the causal half). Recomputation by
gradient checkpointing is not counted: these are the FLOPs of the model, so that their share of a
device's peak is the model FLOPs utilization (MFU) of that appendix.

In a mixture of experts a token passes through `top_k` of the experts; only these count. A frozen
matrix has no gradient (4 FLOPs instead of 6), and a matrix before the first trained parameter has
no backward pass (2 FLOPs).
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ochat_ray.train.meta_model import (
    attention_layers,
    feed_forward_width,
    frozen_work,
    matrices,
    meta_model,
)

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
    """Sizes of a causal language model.

    `matmul_parameters` are those that each token is multiplied with: not input and position
    embeddings, norms and biases, but the output head, tied or not, and of a layer's experts as
    many as a token is routed to. `gated` is whether the feed-forward part has a gate (SwiGLU) in
    addition to its two matrices; `intermediate` is its width, over all active experts of a token.
    `value_head_size` is None if it equals `head_size`, `attention_layers` if all layers have
    attention.

    `idle_parameters` are those of the experts that a token does not pass through.
    `quantized_parameters` are those of the frozen parameters that are quantized to NF4.
    `frozen_parameters` are not trained; `frozen_head` is whether the output head is one of them.
    This saves `frozen_operations` per token, and the backward pass of attention in
    `frozen_attention_layers`.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    gated: bool
    vocabulary: int
    parameters: int
    matmul_parameters: int
    tied: bool
    value_head_size: int | None = None
    attention_layers: int | None = None
    idle_parameters: int = 0
    frozen_parameters: int = 0
    frozen_operations: int = 0
    frozen_attention_layers: int = 0
    frozen_head: bool = False
    quantized_parameters: int = 0

    @property
    def trained_parameters(self) -> int:
        """Parameters that are not frozen."""
        return self.parameters - self.frozen_parameters

    def weight_bytes(self, width: int) -> int:
        """Return the bytes of all parameters, of `width` bytes or quantized, without scales."""
        return (
            width * (self.parameters - self.quantized_parameters) + self.quantized_parameters // 2
        )

    @property
    def attention_width(self) -> int:
        """Heads x head size, which determines attention's FLOPs; `hidden` in most models.

        If values are narrower than queries and keys, as in DeepSeek's models, the mean of both.
        """
        values = self.head_size if self.value_head_size is None else self.value_head_size
        return self.heads * (self.head_size + values) // 2

    @property
    def attention_work(self) -> int:
        """Attention width, over all layers that have attention."""
        layers = self.layers if self.attention_layers is None else self.attention_layers
        return layers * self.attention_width

    @classmethod
    def of(
        cls, config: Any, frozen: Collection[str] = (), *, model: Any = None, quantized: int = 0
    ) -> ModelShape:
        """Return the shape of the model of a transformers configuration.

        Parameters are counted in the model itself, built on torch's meta device, which takes a
        fraction of a second and no memory for any size. `frozen` are names of parameters that are
        not trained. `model` is the model on the meta device if it has adapters, `quantized` the
        number of its quantized parameters.
        """
        model = meta_model(config) if model is None else model
        text = config.get_text_config()
        head = model.get_output_embeddings().weight
        found = matrices(model)
        attention = attention_layers(text)
        saved = frozen_work(model, found, frozen, attention)
        gated = any("gate" in name for name, _ in model.named_parameters())
        heads = getattr(text, "num_attention_heads", None) or 0  # none in Mamba and RWKV
        kv_heads = 1 if getattr(text, "multi_query", False) else heads
        head_size = _head_size(text) or text.hidden_size // max(1, heads)
        if getattr(text, "qk_nope_head_dim", None):  # multi-head latent attention (DeepSeek)
            head_size = text.qk_nope_head_dim + text.qk_rope_head_dim
        return cls(
            layers=text.num_hidden_layers,
            hidden=text.hidden_size,
            heads=heads,
            kv_heads=getattr(text, "num_key_value_heads", None) or kv_heads,
            head_size=head_size,
            intermediate=feed_forward_width(found, text.hidden_size, gated=gated)
            or getattr(text, "intermediate_size", None)
            or getattr(text, "n_inner", None)
            or 4 * text.hidden_size,
            gated=gated,
            vocabulary=head.shape[0],
            parameters=sum(p.numel() for p in model.parameters()),
            matmul_parameters=sum(matrix.active for matrix in found),
            tied=head is model.get_input_embeddings().weight,
            value_head_size=getattr(text, "v_head_dim", None),
            attention_layers=len(attention),
            idle_parameters=sum(matrix.size - matrix.active for matrix in found),
            frozen_parameters=sum(p.numel() for n, p in model.named_parameters() if n in frozen),
            frozen_operations=saved.operations,
            frozen_attention_layers=saved.attention_layers,
            frozen_head=saved.head,
            quantized_parameters=quantized,
        )


def _head_size(text: Any) -> int | None:
    """Return `head_dim`, or its mean if it differs between layers (Gemma 4)."""
    layers = text.per_layer_config if getattr(text, "is_heterogeneous", False) else [text]
    sizes = [size for layer in layers if (size := getattr(layer, "head_dim", None))]
    return round(sum(sizes) / len(sizes)) if sizes else None


def training_flops(
    shape: ModelShape, lengths: Sequence[int] | np.ndarray, *, predicted: int | None = None
) -> float:
    """Return the FLOPs of a forward and backward pass of isolated conversations.

    `lengths` are their tokens. `predicted` is the number of tokens for which logits are computed;
    None means all.
    """
    n = np.asarray(lengths, dtype=np.float64)
    tokens = float(n.sum())
    without_logits = 0.0 if predicted is None else tokens - predicted
    frozen_attention = 4.0 * shape.frozen_attention_layers * shape.attention_width
    return (
        (6.0 * shape.matmul_parameters - shape.frozen_operations) * tokens
        - (4.0 if shape.frozen_head else 6.0) * shape.hidden * shape.vocabulary * without_logits
        + (6.0 * shape.attention_work - frozen_attention) * float((n * n).sum())
    )


def attention_tokens(shape: ModelShape) -> int:
    """Return the conversation length in tokens at which attention costs as much as the rest."""
    return max(1, shape.matmul_parameters // max(1, shape.attention_work))


# Dense, with float32 accumulation, at boost clock; vendors' figures "with sparsity" are halved.
# The first name that is part of the device's is used. Sources: NVIDIA's data sheets of B200 (HGX),
# H200, H100, A100, A10, L4, L40S and V100; whitepapers "NVIDIA Ampere GA102" (3090, A6000), "Ada"
# (4090) and "RTX Blackwell" (5090), appendices; AWS's page of G5 instances for the A10G.
_TERAFLOPS = (
    ("B200", 2250.0),
    ("H200", 989.4),
    ("H100 PCIe", 756.0),
    ("H100 NVL", 835.5),
    ("H100", 989.4),
    ("A100", 312.0),
    ("A10G", 70.0),
    ("A10", 125.0),
    ("RTX A6000", 154.8),
    ("L40S", 362.0),
    ("L4", 121.0),
    ("RTX 3090 Ti", 80.0),
    ("RTX 3090", 71.0),
    ("RTX 4090", 165.2),
    ("RTX 5090", 209.5),
)
_TERAFLOPS_FLOAT16_ONLY = (("V100-PCIE", 112.0), ("V100", 125.0))
_NOT_THESE = ("Laptop", "MIG", "4090 D", "5090 D", "GB200")


def peak_flops(device_name: str, dtype: str | torch.dtype) -> float | None:
    """Return a GPU's dense peak in bfloat16 or float16, in FLOPs per second; None if unknown.

    `device_name` is that of `torch.cuda.get_device_name`.
    """
    kind = str(dtype).removeprefix("torch.")
    if kind not in ("bfloat16", "float16") or any(name in device_name for name in _NOT_THESE):
        return None
    table = _TERAFLOPS + (_TERAFLOPS_FLOAT16_ONLY if kind == "float16" else ())
    words = f"{device_name} ".replace("-", " ")
    for name, teraflops in table:
        if f"{name} ".replace("-", " ") in words:
            return teraflops * 1e12
    return None


def measured_peak_flops(
    device: str | torch.device, dtype: str | torch.dtype, seconds: float = 0.4
) -> float:
    """Measure the best rate of a few square matrix multiplications, in FLOPs per second.

    For CPUs, with torch's current number of threads, and for GPUs that `peak_flops` does not know.
    The size of the matrices doubles until the next size would exceed `seconds`.
    """
    import torch

    kind: torch.dtype = getattr(torch, str(dtype).removeprefix("torch."))
    device = torch.device(device)

    def once(matrix: torch.Tensor) -> float:
        started = time.perf_counter()
        torch.matmul(matrix, matrix)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    ends = time.perf_counter() + seconds
    best, size = 0.0, 128
    while size <= 8192:
        matrix = torch.ones(size, size, dtype=kind, device=device)
        once(matrix)  # initializes libraries and threads
        took = min(once(matrix) for _ in range(3))
        best = max(best, 2.0 * size**3 / took)
        size *= 2
        if time.perf_counter() + 4 * 8 * took > ends:
            break
    return best
