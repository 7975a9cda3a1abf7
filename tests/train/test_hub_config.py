"""config.json for transformers 4, compared with the keys that its configuration classes read."""

import pytest
from transformers import AutoConfig

from ochat_ray.train.hub_config import with_version_4_keys, write_config

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LOCAL = {"rope_type": "default", "rope_theta": 1e4}


@pytest.mark.parametrize(
    ("model_type", "rope", "expected"),
    [
        ("llama", {"rope_type": "default", "rope_theta": 1e5}, {"rope_theta": 1e5}),
        ("llama", YARN | {"rope_theta": 1e5}, {"rope_theta": 1e5, "rope_scaling": YARN}),
        (
            "phi",
            {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
            {"rope_theta": 1e4, "partial_rotary_factor": 0.5},
        ),
        (
            "gpt_neox",
            {"rope_type": "default", "rope_theta": 2e4, "partial_rotary_factor": 0.25},
            {"rotary_emb_base": 2e4, "rotary_pct": 0.25},
        ),
        (
            "phi3",
            {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0],
             "long_factor": [2.0], "original_max_position_embeddings": 64},
            {"rope_theta": 1e4,
             "rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}},
        ),
        (
            "gemma3_text",
            {"full_attention": YARN | {"rope_theta": 1e6}, "sliding_attention": LOCAL},
            {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": YARN},
        ),
        (
            "olmo3",
            {"full_attention": YARN | {"rope_theta": 5e5}, "sliding_attention": LOCAL},
            {"rope_theta": 5e5, "rope_scaling": YARN},
        ),
    ],
)  # fmt: skip
def test_rotary_embeddings_have_the_keys_of_version_4(model_type, rope, expected):
    config = {"model_type": model_type, "rope_parameters": rope}
    assert with_version_4_keys(config) == config | {"rope_scaling": None} | expected


def test_the_dtype_has_both_names():
    assert with_version_4_keys({"dtype": "bfloat16"})["torch_dtype"] == "bfloat16"


def test_layers_have_the_names_of_version_4():
    layers = ["linear_attention", "full_attention"]
    hybrid = {"model_type": "granitemoehybrid", "layer_types": layers}
    assert with_version_4_keys(hybrid)["layer_types"] == ["mamba", "attention"]
    three = ["sliding_attention", "sliding_attention", "full_attention"]
    gemma = {"model_type": "gemma3_text", "layer_types": three * 2}
    assert with_version_4_keys(gemma)["sliding_window_pattern"] == 3
    irregular = {"model_type": "gemma3_text", "layer_types": [*three, "full_attention"]}
    assert "sliding_window_pattern" not in with_version_4_keys(irregular)


@pytest.mark.parametrize(
    "model_type",
    "llama gpt_neox phi phi3 gemma3_text olmo3 cohere2 qwen3_moe falcon mamba2 dbrx zamba2 "
    "granitemoehybrid deepseek_v3 gpt_oss modernbert-decoder".split(),
)
def test_transformers_5_reads_the_configuration_that_was_written(model_type, tmp_path):
    config = AutoConfig.for_model(model_type)
    write_config(config, tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    for name in ("rope_parameters", "layer_types", "layers_block_type", "time_step_limit"):
        assert getattr(again, name, None) == getattr(config, name, None)
    assert again.num_hidden_layers == config.num_hidden_layers
