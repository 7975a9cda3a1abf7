"""config.json for transformers 5, transformers 4 and engines built on either of them.

transformers 5 stores rotary embeddings in `rope_parameters` and the dtype in `dtype`. Version 4
reads other keys, and silently uses its defaults if they are missing: a model trained with a rotary
base of 100,000 ran with 10,000. This module writes the keys of both.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_ROPE_BASE = {"gpt_neox": "rotary_emb_base", "gpt_neox_japanese": "rotary_emb_base"}
_ROPE_SHARE = {"gpt_neox": "rotary_pct", "gpt_neox_japanese": "rotary_pct"}
_ROPE_BASES_BY_LAYER_TYPE = {
    "gemma3_text": ("rope_theta", "rope_local_base_freq"),
    "gemma3n_text": ("rope_theta", "rope_local_base_freq"),
    "modernbert-decoder": ("global_rope_theta", "local_rope_theta"),
    "olmo3": ("rope_theta", None),
}
"""Keys of transformers 4 for the rotary base of full and sliding attention, by model type."""

_OLD_LAYER_TYPES = {"linear_attention": "mamba", "full_attention": "attention"}
_KEYS_OF_OLD_LAYER_TYPES = {"granitemoehybrid": "layer_types", "zamba2": "layers_block_type"}
_WITH_SLIDING_WINDOW_PATTERN = ("gemma3_text", "cohere2")
_NO_LIMIT = [0.0, {"__float__": "Infinity"}]
"""The default of `time_step_limit` as transformers 5 writes it; version 4 cannot read it."""


def write_config(config: Any, directory: Path) -> None:
    """Write a transformers configuration as config.json, with the keys of version 4 added."""
    config.save_pretrained(directory)
    path = directory / "config.json"
    written = with_version_4_keys(json.loads(path.read_bytes()))
    path.write_text(json.dumps(written, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def with_version_4_keys(config: dict[str, Any]) -> dict[str, Any]:
    """Return a parsed config.json of transformers 5 with the keys of version 4 added.

    transformers 5 reads the same configuration from the result.
    """
    result = {
        key: with_version_4_keys(value)
        if isinstance(value, dict) and "model_type" in value
        else value
        for key, value in config.items()
    }
    model_type = str(config.get("model_type"))
    if dtype := config.get("dtype"):
        result["torch_dtype"] = dtype
    if rope := config.get("rope_parameters"):
        result |= _rope_keys(model_type, rope)
    if result.get("time_step_limit") == _NO_LIMIT:
        del result["time_step_limit"]
    if key := _KEYS_OF_OLD_LAYER_TYPES.get(model_type):
        result[key] = [_OLD_LAYER_TYPES.get(name, name) for name in config[key]]
    if model_type in _WITH_SLIDING_WINDOW_PATTERN:
        result |= _sliding_window_pattern(config.get("layer_types") or [])
    if model_type == "qwen3_moe":
        result["num_experts"] = config["num_local_experts"]
    if model_type == "falcon" and config["multi_query"] and not config["new_decoder_architecture"]:
        result["num_kv_heads"] = 1  # transformers ignores it here, converters to GGUF do not
    if model_type == "dbrx":
        ffn = {k: v for k, v in config["ffn_config"].items() if k != "hidden_size"}
        attention = config["attn_config"] | {"rope_theta": result["rope_theta"]}
        result |= {"ffn_config": ffn, "attn_config": attention}
    return result


def _rope_keys(model_type: str, rope: dict[str, Any]) -> dict[str, Any]:
    """Return version 4's keys for the value of `rope_parameters`."""
    if any(isinstance(value, dict) for value in rope.values()):
        if model_type not in _ROPE_BASES_BY_LAYER_TYPE:
            return {}  # no model of version 4 has more than one
        full, sliding = rope["full_attention"], rope["sliding_attention"]
        for_full, for_sliding = _ROPE_BASES_BY_LAYER_TYPE[model_type]
        bases = {for_full: full["rope_theta"], "rope_scaling": _scaling(model_type, full)}
        return bases | ({for_sliding: sliding["rope_theta"]} if for_sliding else {})
    keys: dict[str, Any] = {"rope_scaling": _scaling(model_type, rope)}
    if "rope_theta" in rope:
        keys[_ROPE_BASE.get(model_type, "rope_theta")] = rope["rope_theta"]
    if "partial_rotary_factor" in rope:
        name = _ROPE_SHARE.get(model_type, "partial_rotary_factor")
        keys[name] = rope["partial_rotary_factor"]
    return keys


def _scaling(model_type: str, rope: dict[str, Any]) -> dict[str, Any] | None:
    """Return the value of version 4's `rope_scaling`; None without scaling."""
    if rope.get("rope_type", "default") == "default":
        return None
    if model_type == "phi3":  # accepts only these three keys
        return {"type": rope["rope_type"]} | {
            key: rope[key] for key in ("short_factor", "long_factor")
        }
    return {k: v for k, v in rope.items() if k not in ("rope_theta", "partial_rotary_factor")}


def _sliding_window_pattern(layer_types: list[str]) -> dict[str, int]:
    """Return transformers 4.51's key for n if exactly every n-th layer has full attention."""
    full = [i for i, layer_type in enumerate(layer_types, 1) if layer_type == "full_attention"]
    if not full or full != list(range(full[0], len(layer_types) + 1, full[0])):
        return {}
    return {"sliding_window_pattern": full[0]}
