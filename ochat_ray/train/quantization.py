"""NF4 quantization of a frozen base model through bitsandbytes (QLoRA).

Dettmers et al., 2023, arXiv:2305.14314: each weight of a linear layer except the output head is
rounded to one of 16 values, in blocks of 64 with a common scale; the scales are rounded to 8 bits,
in blocks of 256 (double quantization). A forward or backward pass dequantizes one layer at a time.
"""

from __future__ import annotations

import logging
from typing import Any

import torch

from ochat_ray.models.base_model import load_model
from ochat_ray.train.lora_options import NF4
from ochat_ray.train.meta_model import meta_model

SCALE_BYTES = 1 / 64 + 4 / (64 * 256)
"""Bytes of the scales of both levels per quantized weight, which itself has half a byte."""


def load_quantized(path: str, dtype: torch.dtype, *, device: torch.device, **options: Any) -> Any:
    """Load a causal language model, as `load_model` does, with quantized linear layers.

    Each weight is read in `dtype` and quantized on `device` while the model is loaded, so the
    complete model in `dtype` need not fit the device.
    """
    quantization = {"quantization_config": _bitsandbytes_config(dtype), "device_map": {"": device}}
    model = load_model(path, dtype, quantization=quantization, **options)
    for layer in quantized_layers(model).values():
        # On CPUs with bfloat16 in AVX-512, bitsandbytes 0.50.2 converts the weight of a layer for a
        # faster kernel in its first evaluation (`Linear4bit.forward`). That rounds the scales to
        # bfloat16, later gradients are wrong, and a weight that ZeRO-3 has gathered is lost.
        layer.support_avx512bf16_for_cpu = False
    return model


def quantized_layers(model: Any) -> dict[str, Any]:
    """Return the quantized layers of a model by name."""
    from bitsandbytes.nn import Linear4bit

    return {name: m for name, m in model.named_modules() if isinstance(m, Linear4bit)}


def quantized_parameters(model_config: Any) -> int:
    """Return the number of weights that transformers quantizes in a model."""
    from transformers.quantizers import AutoHfQuantizer

    model = meta_model(model_config)
    quantizer = AutoHfQuantizer.from_config(_bitsandbytes_config(model.dtype), pre_quantized=False)
    quantizer.preprocess_model(model, device_map=None)
    return sum(m.in_features * m.out_features for m in quantized_layers(model).values())


def dequantized(layer: Any) -> torch.Tensor:
    """Return the weight of a quantized layer in the dtype in which it was read."""
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(layer.weight.data, layer.weight.quant_state)


def silence_kernel_warning() -> None:
    """Silence a warning of bitsandbytes 0.50.2; call it before peft or transformers imports it.

    On some CPUs it asks for the package `kernels`, for a kernel that `load_quantized` turns off.
    """
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def _bitsandbytes_config(dtype: torch.dtype) -> Any:
    silence_kernel_warning()
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=NF4,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
