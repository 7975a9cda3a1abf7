"""Tiny configurations of the same model family with the same kinds of layers, for the probe.

Exactness (of masks, state, positions, soft-capping, sinks) depends on a model's class and on the
switches of its configuration, not on its sizes.
"""

from __future__ import annotations

import copy
from typing import Any

WINDOW = 8
"""Tokens of sliding windows and chunks in a tiny model, fewer than in the probe's conversations."""

_HIDDEN, _HEADS, _HEAD_SIZE, _VOCABULARY = 64, 4, 16, 128

# Names in transformers' configurations (5.19), and the sizes to which they are reduced.
_SIZES = (
    (_VOCABULARY, "vocab_size vocab_size_per_layer_input"),
    (
        _HIDDEN,
        """hidden_size d_model n_embd emb_dim embedding_dim lru_width word_embed_proj_dim
        embedding_size""",
    ),
    (
        _HEADS,
        """num_attention_heads n_head n_heads attention_heads num_heads
        encoder_attention_heads decoder_attention_heads num_key_value_heads num_kv_heads kv_n_heads
        num_decoder_attention_heads num_encoder_attention_heads swa_num_attention_heads
        swa_num_key_value_heads linear_num_heads linear_num_value_heads
        num_attention_heads_per_layer mamba_n_groups n_groups mamba_ngroups index_n_heads
        num_query_groups""",
    ),
    (
        2,
        """linear_num_key_heads num_local_experts num_experts n_routed_experts moe_num_experts
        num_experts_per_tok num_experts_per_token moe_k moe_topk moe_top_k n_mamba_heads o_groups
        zero_expert_num""",
    ),
    (
        1,
        """n_group topk_group num_expert_group n_shared_experts moe_num_shared_experts
        num_shared_experts""",
    ),
    (
        _HEAD_SIZE,
        """qk_nope_head_dim v_head_dim kv_channels linear_key_head_dim
        linear_value_head_dim linear_head_dim mamba_d_state mamba_d_head mamba_head_dim
        ssm_state_size state_size d_head dim_head index_head_dim q_lora_rank kv_lora_rank
        o_lora_rank laurel_rank hidden_size_per_layer_input mamba_dt_rank gated_norm_rank
        adapter_rank router_hidden_size ple_embed_dim hc_lowrank swa_head_dim""",
    ),
    (8, "qk_rope_head_dim rotary_dim mamba_n_heads mamba_num_heads"),
    (
        96,
        """intermediate_size n_inner ffn_dim dff d_inner ffn_hidden_size moe_intermediate_size
        shared_expert_intermediate_size shared_intermediate_size intermediate_size_mlp
        decoder_ffn_dim encoder_ffn_dim moe_shared_expert_intermediate_size expert_ffn_hidden_size
        dense_intermediate_size feed_forward_size block_multiple_of""",
    ),
    (
        WINDOW,
        """sliding_window sliding_window_size window_size attention_window_size
        attention_chunk_size local_attention mamba_chunk_size chunk_size block_size
        keep_window_size index_topk""",
    ),
)
_SMALL = {name: size for size, names in _SIZES for name in names.split()}

_CAP = 0.5
"""Soft-capping of attention, small enough for the scores of a tiny model (Gemma 2 has 50)."""

_LAYERS = "num_hidden_layers n_layer n_layers num_layers num_blocks".split()
_INDICES = """attn_layer_indices full_attn_idxs hybrid_layer_ids moe_layers mlp_only_layers
    ple_layer_ids cross_attention_layers""".split()
"""Lists of the layers of a special kind."""
_THRESHOLDS = """first_k_dense_replace num_dense_layers moe_layer_start_index
    max_window_layers""".split()
"""Numbers of layers at the start that differ from the others."""
_PERIODS = """attn_layer_period expert_layer_period decoder_sparse_step interleave_moe_layer_step
    moe_layer_interval global_attn_every_n_layers""".split()


def tiny_config(config: Any, *, of_each: int = 1) -> Any:
    """Return a small copy of a transformers configuration with `of_each` layers of each kind.

    Sizes are reduced, and all experts are active, so that rounding cannot change the routing;
    switches, factors and kinds of layers are kept.
    """
    small = copy.deepcopy(config)
    for part in _parts(small):
        layers = _own_layers(part)
        kept = _keep_layers(part, layers, of_each)
        _shrink(part)
        if layers:
            part.per_layer_config = {
                place: {name: _small(name, value) for name, value in layers[layer].items()}
                for place, layer in enumerate(kept)
                if layer in layers
            }
    return small


def layer_kinds(config: Any) -> list[str]:
    """Return the kinds of token-mixing layers in a configuration, one per layer, or none."""
    text = config.get_text_config(decoder=True)
    for name in ("layer_types", "layers_block_type", "attention_layers"):
        kinds = getattr(text, name, None)
        if isinstance(kinds, (list, tuple)) and kinds:
            return [str(kind) for kind in kinds]
    return []


def _parts(config: Any) -> list[Any]:
    """Return the configuration and the configurations within it."""
    inner = [v for v in vars(config).values() if hasattr(v, "to_dict") and hasattr(v, "model_type")]
    return [config, *(part for one in inner for part in _parts(one))]


def _own_layers(config: Any) -> dict[int, dict[str, Any]]:
    """Remove and return the values of individual layers (Gemma 4)."""
    if not getattr(config, "is_heterogeneous", False):
        return {}
    own = {int(layer): dict(v) for layer, v in config.to_dict()["per_layer_config"].items()}
    config.per_layer_config = None
    return own


def _small(name: str, value: Any) -> Any:
    if name == "head_dim":
        return 3 * _HEAD_SIZE  # different from the other layers
    return min(value, _SMALL[name]) if name in _SMALL and isinstance(value, int) else value


def _keep_layers(config: Any, own: dict[int, dict[str, Any]], of_each: int) -> list[int]:
    """Remove further layers of each kind; return the indices of the remaining layers."""
    values = vars(config)
    name = next((n for n in _LAYERS if isinstance(values.get(n), int)), None)
    if name is None:
        return []
    count = values[name]
    lists = {
        k: list(v) for k, v in values.items() if isinstance(v, (list, tuple)) and len(v) == count
    }
    lists = {k: v for k, v in lists.items() if k not in _INDICES}
    indices = {k: list(values[k]) for k in _INDICES if isinstance(values.get(k), (list, tuple))}
    thresholds = {k: values[k] for k in _THRESHOLDS if isinstance(values.get(k), int)}
    shared = values.get("num_kv_shared_layers")
    periods = [values[k] for k in _PERIODS if isinstance(values.get(k), int) and values[k] > 1]

    def kind(layer: int) -> str:
        return repr(
            (
                [v[layer] for v in lists.values() if len({repr(x) for x in v}) <= 4],
                [layer in v for v in indices.values()],
                [layer < v for v in thresholds.values()],
                bool(shared) and layer >= count - (shared or 0),
                own.get(layer),
            )
        )

    if periods and "layer_types" not in lists:
        kept = list(range(min(count, of_each * max(*periods, 2))))
    else:
        kinds = [kind(layer) for layer in range(count)]
        kept = [i for i in range(count) if kinds[:i].count(kinds[i]) < of_each]
        kept = sorted(kept + [i for i in range(count) if i not in kept][: max(0, 2 - len(kept))])
    setattr(config, name, len(kept))
    for key, value in lists.items():
        setattr(config, key, [value[layer] for layer in kept])
    for key, value in indices.items():
        setattr(config, key, [place for place, layer in enumerate(kept) if layer in value])
    for key, value in thresholds.items():
        setattr(config, key, sum(layer < value for layer in kept))
    if shared:
        config.num_kv_shared_layers = sum(layer >= count - shared for layer in kept)
    if isinstance(values.get("moe_layer_end_index"), int):
        config.moe_layer_end_index = len(kept) - 1
    if isinstance(values.get("attention_types"), list) and "attention_layers" in lists:
        config.attention_types = [[list(config.attention_layers), 1]]
    return kept


def _shrink(config: Any) -> None:
    values = dict(vars(config))
    heads = getattr(config, "num_attention_heads", None)
    hidden = getattr(config, "hidden_size", None)
    for name, value in values.items():
        if name not in _SMALL:
            continue
        if isinstance(value, list) and all(isinstance(v, int) for v in value):
            setattr(config, name, [min(v, _SMALL[name]) for v in value])
        elif isinstance(value, int) and not isinstance(value, bool):
            setattr(config, name, min(value, _SMALL[name]))
    for name in ("num_key_value_heads", "num_kv_heads", "kv_n_heads", "swa_num_key_value_heads"):
        kv_heads = values.get(name)
        if isinstance(kv_heads, int) and isinstance(heads, int) and 1 < kv_heads < heads:
            setattr(config, name, _HEADS // 2)
    if isinstance(values.get("head_dim"), int):
        own = isinstance(heads, int) and hidden is not None and values["head_dim"] * heads != hidden
        config.head_dim = 2 * _HEAD_SIZE if own and "expand" not in values else _HEAD_SIZE
        if values["head_dim"] == values.get("qk_rope_head_dim"):  # DeepSeek's name for that one
            config.head_dim = config.qk_rope_head_dim
    if isinstance(values.get("qk_head_dim"), int) and "qk_nope_head_dim" in values:
        config.qk_head_dim = config.qk_nope_head_dim + config.qk_rope_head_dim
    _shrink_state_space(config, values)
    _shrink_rotary(config)
    if values.get("attn_logit_softcapping"):
        config.attn_logit_softcapping = _CAP
    for token, value in (("pad_token_id", 0), ("bos_token_id", 1), ("eos_token_id", 2)):
        if values.get(token) is not None:
            setattr(config, token, value)


def _shrink_state_space(config: Any, values: dict[str, Any]) -> None:
    """Shrink the sizes of Mamba layers, which depend on one another."""
    expand = values.get("mamba_expand", values.get("expand"))
    if not isinstance(expand, (int, float)):
        expand = 2
    inner = int(expand * _HIDDEN)
    if "mamba_n_heads" in values:
        config.mamba_n_heads, config.mamba_d_head = inner // _HEAD_SIZE, _HEAD_SIZE
    if isinstance(values.get("mamba_d_ssm"), int):
        config.mamba_d_ssm = inner
    if "mamba_num_heads" in values:
        config.mamba_num_heads, config.mamba_head_dim = inner // _HEAD_SIZE, _HEAD_SIZE
    if "expand" in values and "num_heads" in values:  # Mamba 2
        config.num_heads, config.head_dim = inner // _HEAD_SIZE, _HEAD_SIZE
    if "mamba_headdim" in values:  # Zamba 2
        config.mamba_headdim = inner // config.n_mamba_heads
    if isinstance(values.get("time_step_rank"), int):
        config.time_step_rank = min(values["time_step_rank"], 4)
    if "attention_hidden_size" in values:
        wide = "attention_head_dim" in values  # Zamba's attention sees two hidden states; RWKV
        config.attention_hidden_size = (2 if wide else 1) * _HIDDEN
    if "attention_head_dim" in values:
        config.attention_head_dim = 2 * _HIDDEN // _HEADS


def _shrink_rotary(config: Any) -> None:
    """Shrink lists of factors per frequency, half as many as there are rotated dimensions."""
    rope = getattr(config, "rope_parameters", None)
    if not isinstance(rope, dict):
        return
    size = getattr(config, "head_dim", None) or _HIDDEN // _HEADS
    if getattr(config, "qk_rope_head_dim", None):
        size = config.qk_rope_head_dim
    nested = [value for value in rope.values() if isinstance(value, dict)]
    for one in nested or [rope]:
        share = one.get("partial_rotary_factor", getattr(config, "partial_rotary_factor", None))
        rotated = int(size * (share or 1.0)) // 2
        for name in ("short_factor", "long_factor"):
            if isinstance(one.get(name), list):
                one[name] = one[name][:rotated]
        if isinstance(one.get("mrope_section"), list):
            section = [rotated // 3] * 3
            section[0] += rotated - sum(section)
            one["mrope_section"] = section
