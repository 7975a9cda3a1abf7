"""LoRA adapters as peft writes them, made by hand."""

from __future__ import annotations

import json

import torch
from safetensors.torch import load_file, save_file

PROJECTIONS = {
    "self_attn.q_proj": (64, 64),
    "self_attn.k_proj": (64, 32),
    "self_attn.v_proj": (64, 32),
    "self_attn.o_proj": (64, 64),
    "mlp.gate_proj": (64, 128),
    "mlp.up_proj": (64, 128),
    "mlp.down_proj": (128, 64),
}
"""Inputs and outputs of the linear layers of the tests' two-layer Llama."""


def tensors_of(seed, *, rank=4, targets=("q_proj", "v_proj", "down_proj"), size=0.5):
    generator = torch.Generator().manual_seed(seed)
    return {
        f"base_model.model.model.layers.{layer}.{name}.lora_{side}.weight": size
        * torch.randn(shape, generator=generator)
        for layer in range(2)
        for name, (inputs, outputs) in PROJECTIONS.items()
        if name.rpartition(".")[2] in targets
        for side, shape in (("A", (rank, inputs)), ("B", (outputs, rank)))
    }


def tensors_by_module(directory):
    """Matrices {"A": ..., "B": ...} by the name of the layer."""
    found = {}
    for key, tensor in load_file(directory / "adapter_model.safetensors").items():
        module, _, side = key.removeprefix("base_model.model.").partition(".lora_")
        found.setdefault(module, {})[side[0]] = tensor
    return found


def write_adapter(
    directory, seed=0, *, tensors=None, rank=4, targets=("q_proj", "v_proj", "down_proj"), **config
):
    directory.mkdir(parents=True, exist_ok=True)
    if tensors is None:
        tensors = tensors_of(seed, rank=rank, targets=targets)
    save_file(tensors, directory / "adapter_model.safetensors")
    defaults = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "runs/tiny",
        "r": rank, "lora_alpha": 2 * rank, "target_modules": list(targets), "bias": "none",
        "use_rslora": False, "use_dora": False, "lora_dropout": 0.1, "inference_mode": True,
        "modules_to_save": None, "fan_in_fan_out": False, "init_lora_weights": True,
    }  # fmt: skip
    (directory / "adapter_config.json").write_text(json.dumps(defaults | config))
    return directory
