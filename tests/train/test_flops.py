"""FLOPs and sizes, computed by hand or taken from published tables."""

import pytest

from ochat_ray.train.flops import (
    ModelShape,
    attention_tokens,
    measured_peak_flops,
    peak_flops,
    training_flops,
)


def llama(**sizes):
    from transformers import LlamaConfig

    return ModelShape.of(LlamaConfig(vocab_size=32000, **sizes))


TINY = {
    "vocab_size": 10,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "tie_word_embeddings": True,
}


@pytest.fixture(scope="module")
def llama_7b():
    return llama(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32
    )


@pytest.fixture(scope="module")
def llama_13b():
    return llama(
        hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40
    )


@pytest.fixture(scope="module")
def tiny():
    """2 layers of 8 hidden, 2 heads of which 1 for keys, 16 intermediate, 10 words, tied."""
    from transformers import LlamaConfig

    return ModelShape.of(LlamaConfig(**TINY))


def test_llama_7b_and_13b_have_the_published_number_of_parameters(llama_7b, llama_13b):
    assert llama_7b.parameters == 6_738_415_616
    assert llama_13b.parameters == 13_015_864_320
    # Without 32,000 input embeddings and two norms a layer and one at the end.
    assert llama_13b.matmul_parameters == 13_015_864_320 - 32_000 * 5120 - 81 * 5120
    assert (llama_13b.layers, llama_13b.hidden, llama_13b.heads, llama_13b.kv_heads) == (
        40,
        5120,
        40,
        40,
    )
    assert (llama_13b.intermediate, llama_13b.gated, llama_13b.tied) == (13824, True, False)


def test_a_tied_head_is_multiplied_but_counted_once(tiny):
    # q 8x8, k 8x4, v 8x4, o 8x8, and three of 8x16, twice; the head is the embedding of 10x8.
    layers = 2 * (64 + 32 + 32 + 64 + 3 * 128)
    assert tiny.matmul_parameters == layers + 80
    assert tiny.parameters == layers + 80 + 5 * 8
    assert tiny.tied
    assert (tiny.kv_heads, tiny.head_size, tiny.attention_width) == (1, 4, 8)


def test_other_families(llama_13b):
    from transformers import GPTBigCodeConfig, GPTNeoXConfig, Qwen2Config

    starcoder = ModelShape.of(
        GPTBigCodeConfig(
            vocab_size=49152, n_positions=8192, n_embd=6144, n_layer=40, n_head=48, n_inner=24576
        )
    )
    assert 15.5e9 < starcoder.parameters < 15.6e9
    assert (starcoder.kv_heads, starcoder.intermediate, starcoder.gated) == (1, 24576, False)
    # A layer: q 6144x6144, k and v 6144x128 each, o 6144x6144, and two of 6144x24576.
    layer = 2 * 6144**2 + 2 * 6144 * 128 + 2 * 6144 * 24576
    assert starcoder.matmul_parameters == 40 * layer + 49152 * 6144

    pythia = ModelShape.of(
        GPTNeoXConfig(
            vocab_size=50304,
            hidden_size=2048,
            num_hidden_layers=24,
            num_attention_heads=8,
            intermediate_size=8192,
        )
    )
    assert pythia.parameters == 1_414_647_808  # Pythia-1.4B, EleutherAI's table
    assert (pythia.kv_heads, pythia.gated, pythia.tied) == (8, False, False)

    qwen = ModelShape.of(
        Qwen2Config(
            vocab_size=151936,
            hidden_size=896,
            intermediate_size=4864,
            num_hidden_layers=24,
            num_attention_heads=14,
            num_key_value_heads=2,
            tie_word_embeddings=True,
        )
    )
    assert qwen.parameters == 494_032_768  # Qwen2-0.5B
    assert (qwen.kv_heads, qwen.gated, qwen.tied) == (2, True, True)


def test_training_flops_by_hand(tiny):
    n = tiny.matmul_parameters
    # 12 x 2 layers x width 8 x n / 2 for each of n tokens.
    assert training_flops(tiny, [3, 5]) == 6 * n * 8 + 12 * 2 * 8 / 2 * (9 + 25)
    assert training_flops(tiny, []) == 0


def test_pytorchs_own_count_agrees(tiny):
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(**TINY, attn_implementation="eager"))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.zeros(1, 64, dtype=torch.long)).logits.sum().backward()
    # PyTorch computes the full square of attention, of which a causal model needs half.
    # There is no backward pass through the embedding, which is not a multiplication.
    square = 12 * 2 * 8 * 64 * 64 / 2
    assert counter.get_total_flops() == pytest.approx(training_flops(tiny, [64]) + square, rel=0.02)


def test_the_length_at_which_attention_costs_as_much_as_the_rest(tiny, llama_13b):
    length = attention_tokens(llama_13b)
    assert length == 62_752  # 12,851,609,600 / (40 x 5120), rounded down
    without_attention = 6 * llama_13b.matmul_parameters * length
    assert training_flops(llama_13b, [length]) == pytest.approx(2 * without_attention, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H200", 989.4),
        ("NVIDIA B200", 2250.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A10", 125.0),
        ("NVIDIA A10G", 70.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA GeForce RTX 3090", 71.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
    ],
)
def test_peaks_from_the_data_sheets(name, teraflops):
    assert peak_flops(name, "bfloat16") == teraflops * 1e12


def test_an_unknown_device_has_no_peak():
    import torch

    assert peak_flops("Tesla V100-SXM2-16GB", torch.float16) == 125e12
    assert peak_flops("Tesla V100-SXM2-16GB", torch.bfloat16) is None
    assert peak_flops("NVIDIA H100 80GB HBM3", "float32") is None
    assert peak_flops("NVIDIA GeForce RTX 4090 Laptop GPU", "bfloat16") is None
    assert peak_flops("NVIDIA L40", "bfloat16") is None  # not an L4
    assert peak_flops("AMD EPYC", "bfloat16") is None


def test_the_measured_peak_is_a_rate_that_a_cpu_can_have():
    assert 1e8 < measured_peak_flops("cpu", "float32", seconds=0.05) < 1e14


def test_logits_that_are_not_computed_are_not_counted(tiny):
    # 10 words x 8 hidden, 6 operations each, for the 7 of 9 tokens that predict nothing.
    whole = training_flops(tiny, [4, 5])
    assert whole - training_flops(tiny, [4, 5], predicted=2) == 6 * 10 * 8 * 7


def test_head_sizes_that_differ_by_layer_count_by_their_mean():
    from transformers import Gemma4TextConfig

    shape = ModelShape.of(Gemma4TextConfig(num_hidden_layers=6))
    assert shape.head_size == round((5 * 256 + 512) / 6)


@pytest.mark.parametrize("model_type", ["mamba", "mamba2", "falcon_mamba", "rwkv"])
def test_models_without_attention_have_none_to_count(model_type):
    from transformers import AutoConfig

    shape = ModelShape.of(AutoConfig.for_model(model_type, num_hidden_layers=2))
    assert shape.attention_work == 0
    assert training_flops(shape, [2, 2]) == training_flops(shape, [4]) > 0


def test_the_image_encoder_is_not_counted():
    from transformers import Gemma3Config, Gemma3TextConfig

    sizes = {"num_hidden_layers": 2}
    text = ModelShape.of(Gemma3TextConfig(vocab_size=300, **sizes))
    both = ModelShape.of(Gemma3Config(text_config={"vocab_size": 300, **sizes}))
    assert both.parameters > text.parameters
    assert both.matmul_parameters == text.matmul_parameters
