"""Table of model families that train exactly, by a tiny random model of each, packed and alone.

    python benchmarks/model_families.py                  a Markdown table of all
    python benchmarks/model_families.py mistral gemma2   of these only

Each family's own configuration class of transformers gives the switches and the kinds of layers;
`ochat_ray.train.tiny` makes it small, `ochat_ray.train.probe` compares logits and parameter
gradients of two conversations, as training computes them, with those of each conversation alone
through the model's own eager attention. No weights are downloaded. Errors are relative, in float32.
"""

from __future__ import annotations

import argparse
import platform
import time
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING

from ochat_ray.errors import UserError
from ochat_ray.models.base_model import without_dropout
from ochat_ray.train.forward import PACKED_SDPA
from ochat_ray.train.probe import AttentionMode, candidates_of, choose_attention_mode
from ochat_ray.train.tiny import layer_kinds

_CONV = ["conv", "conv", "full_attention"] * 4
_LINEAR = ["linear_attention", "linear_attention", "full_attention"] * 4

# transformers' model types, and what its default configuration lacks or what shows more.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("llama", {}),
    "Llama 4": ("llama4_text", {}),
    "Mistral": ("mistral", {"sliding_window": 4096}),
    "Ministral": ("ministral", {"head_dim": 128}),
    "Ministral 3": ("ministral3", {}),
    "Mixtral": ("mixtral", {}),
    "Qwen2": ("qwen2", {}),
    "Qwen2, windows": ("qwen2", {"use_sliding_window": True, "max_window_layers": 16}),
    "Qwen2-MoE": ("qwen2_moe", {}),
    "Qwen3": ("qwen3", {}),
    "Qwen3-MoE": ("qwen3_moe", {}),
    "Qwen3-Next": ("qwen3_next", {}),
    "Qwen3.5": ("qwen3_5_text", {}),
    "Gemma": ("gemma", {}),
    "Gemma 2": ("gemma2", {}),
    "Gemma 3": ("gemma3_text", {}),
    "Gemma 3n": ("gemma3n_text", {}),
    "Gemma 4": ("gemma4_text", {}),
    "VaultGemma": ("vaultgemma", {}),
    "RecurrentGemma": ("recurrent_gemma", {}),
    "Phi": ("phi", {}),
    "Phi-3": ("phi3", {}),
    "PhiMoE": ("phimoe", {}),
    "StableLM": ("stablelm", {}),
    "Nemotron": ("nemotron", {"num_key_value_heads": 8}),
    "Nemotron-H": ("nemotron_h", {}),
    "Falcon": ("falcon", {}),
    "Falcon, ALiBi": ("falcon", {"alibi": True}),
    "Falcon 40B": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 8}),
    "Falcon-H1": ("falcon_h1", {}),
    "FalconMamba": ("falcon_mamba", {}),
    "Mamba": ("mamba", {}),
    "Mamba 2": ("mamba2", {}),
    "Jamba": ("jamba", {}),
    "Bamba": ("bamba", {"attn_layer_indices": [9, 18, 27]}),
    "Zamba": ("zamba", {}),
    "Zamba 2": ("zamba2", {}),
    "RWKV": ("rwkv", {}),
    "xLSTM": ("xlstm", {}),
    "Kimi Linear": ("kimi_linear", {}),
    "LFM2": ("lfm2", {"layer_types": _CONV, "num_hidden_layers": len(_CONV)}),
    "Granite": ("granite", {}),
    "GraniteMoE": ("granitemoe", {}),
    "GraniteMoE shared": ("granitemoeshared", {}),
    "GraniteMoE hybrid": ("granitemoehybrid", {"layer_types": _LINEAR, "num_hidden_layers": 12}),
    "OLMo": ("olmo", {}),
    "OLMo 2": ("olmo2", {}),
    "OLMo 3": ("olmo3", {}),
    "OLMo hybrid": ("olmo_hybrid", {}),
    "OLMoE": ("olmoe", {}),
    "FlexOlmo": ("flex_olmo", {}),
    "Cohere": ("cohere", {}),
    "Cohere 2": ("cohere2", {}),
    "DeepSeek-V2": ("deepseek_v2", {"num_experts_per_tok": 6}),
    "DeepSeek-V3": ("deepseek_v3", {}),
    "DeepSeek-V3.2": ("deepseek_v32", {}),
    "GPT-2": ("gpt2", {}),
    "GPT-Neo": ("gpt_neo", {}),
    "GPT-NeoX": ("gpt_neox", {}),
    "GPT-J": ("gptj", {}),
    "GPT-BigCode": ("gpt_bigcode", {}),
    "GPT-OSS": ("gpt_oss", {}),
    "CodeGen": ("codegen", {}),
    "Starcoder 2": ("starcoder2", {"sliding_window": 4096}),
    "OPT": ("opt", {}),
    "BLOOM": ("bloom", {}),
    "MPT": ("mpt", {}),
    "XGLM": ("xglm", {}),
    "BioGPT": ("biogpt", {}),
    "Persimmon": ("persimmon", {}),
    "JetMoE": ("jetmoe", {}),
    "Helium": ("helium", {}),
    "GLM": ("glm", {}),
    "GLM-4": ("glm4", {}),
    "GLM-4 MoE": ("glm4_moe", {}),
    "ERNIE 4.5": ("ernie4_5", {}),
    "ERNIE 4.5 MoE": ("ernie4_5_moe", {}),
    "SmolLM3": ("smollm3", {}),
    "Arcee": ("arcee", {}),
    "AFMoE": ("afmoe", {}),
    "EXAONE 4": ("exaone4", {}),
    "HunYuan dense": ("hunyuan_v1_dense", {"head_dim": 128}),
    "HunYuan MoE": ("hunyuan_v1_moe", {"head_dim": 128}),
    "MiniMax": ("minimax", {}),
    "MiniMax-M2": ("minimax_m2", {}),
    "MiniCPM 3": ("minicpm3", {}),
    "Seed-OSS": ("seed_oss", {}),
    "dots1": ("dots1", {"n_routed_experts": 128, "num_experts_per_tok": 6, "n_shared_experts": 2}),
    "Apertus": ("apertus", {}),
    "BitNet": ("bitnet", {}),
    "DiffLlama": ("diffllama", {}),
    "Doge": ("doge", {}),
    "LongCat-Flash": ("longcat_flash", {}),
    "Emu 3": ("emu3", {}),
    "CTRL": ("ctrl", {}),
    "BERT": ("bert", {}),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "types", nargs="*", help="transformers' model types; all when none is given"
    )
    wanted = set(parser.parse_args().types)
    if unknown := wanted - {model_type for model_type, _ in FAMILIES.values()}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    transformers.logging.set_verbosity_error()
    started = time.monotonic()
    print("| family | layers | mode | logits | gradient |\n| --- | --- | --- | --- | --- |")
    modes = [
        row(family, model_type, changes)
        for family, (model_type, changes) in FAMILIES.items()
        if not wanted or model_type in wanted
    ]
    packed = sum(mode is not None and mode.packed for mode in modes)
    print(
        f"\n{len(modes)} families: {packed} packed, "
        f"{sum(mode is not None for mode in modes) - packed} unpacked, "
        f"{modes.count(None)} rejected; {time.monotonic() - started:.0f} s, Python "
        f"{platform.python_version()}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}"
    )


def row(family: str, model_type: str, changes: dict[str, Any]) -> AttentionMode | None:
    """Print a family's line of the table."""
    config = without_dropout(CONFIG_MAPPING[model_type](**changes))
    candidates = candidates_of("auto", PACKED_SDPA)
    note = ""
    try:
        try:
            mode = choose_attention_mode(config, candidates)
        except UserError as error:
            if "--no-gradient-checkpointing" not in str(error):
                raise
            note = ", no gradient checkpointing"
            mode = choose_attention_mode(config, candidates, gradient_checkpointing=False)
    except UserError as error:
        print(f"| {family} | {layers(config)} | rejected: {error} | | |", flush=True)
        return None
    how = "packed" if mode.packed else f"unpacked ({mode.attention})"
    print(
        f"| {family} | {layers(config)} | {how}{note} | {mode.logits_error:.0e} | "
        f"{mode.gradient_error:.0e} |",
        flush=True,
    )
    return mode


def layers(config: Any) -> str:
    """Return the kinds of layers that a configuration names, and what else attention depends on."""
    text = config.get_text_config(decoder=True)
    windows = any(
        getattr(text, name, None) for name in ("sliding_window", "window_size", "attention_window")
    )
    kinds = list(dict.fromkeys(layer_kinds(config)))
    recurrent = text.model_type in ("rwkv", "xlstm")
    plain = "sliding_attention" if windows else "full_attention"
    kinds = kinds or ["recurrent" if recurrent else plain]
    if getattr(text, "attn_logit_softcapping", None):
        kinds.append("soft-capping")
    return ", ".join(kinds)


if __name__ == "__main__":
    main()
