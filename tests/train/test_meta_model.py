"""Active experts and frozen layers, compared with PyTorch's FLOP counter and published sizes."""

import re

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from ochat_ray.train.flops import ModelShape, training_flops
from tests.tiny_models import SIZES

TOKENS = 32
LATENT = {
    "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 12, "v_head_dim": 8, "head_dim": 4, "n_group": 2, "topk_group": 1,
    "n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1,
    "moe_intermediate_size": 24, "first_k_dense_replace": 1,
}  # fmt: skip
FAMILIES = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "olmoe": {"num_experts": 8, "num_experts_per_tok": 3},
    "qwen2_moe": {
        "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 40, "num_hidden_layers": 3, "mlp_only_layers": [1],
    },
    "qwen3_moe": {
        "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 16,
        "num_hidden_layers": 4, "decoder_sparse_step": 2,
    },
    "deepseek_v2": LATENT | {"topk_method": "greedy"},
    "deepseek_v3": LATENT,
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "phimoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": {
        "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8,
        "layer_types": ["full_attention"] * 2,
    },
    "jetmoe": {"num_local_experts": 4, "num_experts_per_tok": 2, "kv_channels": 8},
    "ernie4_5_moe": {"moe_num_experts": 8, "moe_k": 2, "moe_intermediate_size": 24},
    "glm4_moe": {
        "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
        "n_group": 1, "topk_group": 1, "head_dim": 8,
    },
    "jamba": {
        "num_experts": 4, "num_experts_per_tok": 2, "num_hidden_layers": 4,
        "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 4, "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "granitemoeshared": {
        "num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 40,
    },
}  # fmt: skip


def counted(model, *, backward):
    """FLOPs that PyTorch counts in a forward pass, or in both passes."""
    with FlopCounterMode(display=False) as counter:
        ids = torch.arange(TOKENS)[None] % 90
        logits = model(input_ids=ids, use_cache=False).logits
        if backward:
            logits.sum().backward()
    return counter.get_total_flops()


def square(shape):
    """The half of attention above the diagonal, which eager attention computes, forward."""
    return 2 * shape.attention_work * TOKENS**2


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_experts_of_a_token_are_counted(family):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **SIZES | FAMILIES[family])
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"  # its loop over experts is matrix products
    model = AutoModelForCausalLM.from_config(config).eval()
    shape = ModelShape.of(config)
    forward = training_flops(shape, [TOKENS]) / 3
    # Rotary frequencies, and Mamba's scan, which is no matrix product, are the rest.
    assert counted(model, backward=False) - square(shape) == pytest.approx(forward, rel=0.02)
    assert shape.idle_parameters > 0


@pytest.mark.parametrize(
    ("family", "sizes", "total", "active"),
    [
        # Technical reports and model cards: Mixtral 46.7B and 12.9B; Qwen3-30B-A3B 30.5B and 3.3B;
        # OLMoE 6.9B and 1.3B; DeepSeek-V3 671B and 37B; gpt-oss-20b 20.9B and 3.6B, which leaves
        # out its input embedding.
        ("mixtral", {"vocab_size": 32000, "num_local_experts": 8}, 46.7e9, 12.9e9),
        (
            "qwen3_moe",
            {
                "vocab_size": 151936, "hidden_size": 2048, "num_hidden_layers": 48,
                "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
                "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768,
            },
            30.5e9,
            3.3e9,
        ),
        ("olmoe", {"intermediate_size": 1024}, 6.9e9, 1.3e9),
        ("deepseek_v3", {}, 671e9, 37e9),
        (
            "gpt_oss",
            {"num_hidden_layers": 24, "num_local_experts": 32, "num_experts_per_tok": 4},
            20.9e9,
            3.6e9 + 201_088 * 2880,
        ),
    ],
)  # fmt: skip
def test_active_parameters_equal_the_published_numbers(family, sizes, total, active):
    shape = ModelShape.of(AutoConfig.for_model(family, **sizes))
    assert shape.parameters == pytest.approx(total, rel=0.01)
    assert shape.parameters - shape.idle_parameters == pytest.approx(active, rel=0.03)


LLAMA = {**SIZES, "num_hidden_layers": 4}


@pytest.mark.parametrize(
    "frozen",
    [
        "nothing",
        "embed_tokens",
        r"embed_tokens|layers\.[01]\.",
        r"layers\.[01]\.",
        r"mlp",
        "lm_head",
    ],
)
def test_frozen_parameters_save_the_operations_that_autograd_skips(frozen):
    config = AutoConfig.for_model("llama", **LLAMA)
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config)
    names = [name for name, _ in model.named_parameters() if re.search(frozen, name)]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in names)
    shape = ModelShape.of(config, names)
    backward = 2 * (shape.attention_work - shape.frozen_attention_layers * shape.attention_width)
    above = square(shape) + 2 * backward * TOKENS**2
    # The first trained layer's inputs have no gradient either, which is not counted.
    assert counted(model, backward=True) - above == pytest.approx(
        training_flops(shape, [TOKENS]), rel=0.04
    )
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    assert shape.frozen_parameters == sum(sizes[name] for name in names)
