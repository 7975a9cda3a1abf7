"""Memory plans computed by hand, and activations as autograd keeps them."""

from dataclasses import replace

import pytest

from ochat_ray.train.flops import ModelShape
from ochat_ray.train.memory import estimate, fits, layer_activations, longest_pack

P = 13_015_864_320
SHARE = P // 8
LLAMA_13B = ModelShape(
    layers=40,
    hidden=5120,
    heads=40,
    kv_heads=40,
    head_size=128,
    intermediate=13824,
    gated=True,
    vocabulary=32000,
    parameters=P,
    matmul_parameters=P - 32000 * 5120 - 81 * 5120,
    tied=False,
)


def plan(**changes):
    settings = {
        "world_size": 8,
        "zero_stage": 3,
        "bf16": True,
        "max_tokens": 8192,
        "gradient_checkpointing": True,
        "attention": "flash_attention_2",
    }
    settings |= changes
    return estimate(settings.pop("shape", LLAMA_13B), **settings)


def test_llama_13b_at_zero_3_on_eight_devices():
    p = plan()
    assert (p.weights, p.gradients, p.optimizer) == (2 * SHARE, 4 * SHARE, 12 * SHARE)
    # A billion gathered parameters of 2 bytes, and a bucket of a tenth of that of 4, twice.
    assert p.communication == 2 * 10**9 + 8 * 10**8
    # 40 layers' inputs, one layer computed again and its gradients, for 8,192 tokens in bfloat16:
    # per token 40 x 2 x 5120, and 8 x 5120 + 2 x (6 x 5120 + 2 x 5120 + 4 x 13824), and
    # 2 x 3 x 13824.
    assert p.activations == 8192 * (409_600 + 40_960 + 192_512 + 82_944)
    # 2**26 logits at a time, of 4 + 4 + 2 bytes; the head's gradient of 4, parts of it of 2 + 2.
    assert p.logits == 10 * 2**26 + 8 * 32000 * 5120
    assert p.update == 8 * 10**9
    assert p.host == 0
    # 18 x 1.627e9 + 2.8e9 + 5.95e9 + 1.98e9
    assert p.total == pytest.approx(40.0e9, rel=0.01)
    assert fits(p, 80 * 10**9)
    assert not fits(p, 40 * 10**9)


def test_float32_has_no_second_copy_of_the_parameters_at_stage_3_alone():
    assert plan(bf16=False).weights == 4 * SHARE
    assert plan(bf16=False).optimizer == 8 * SHARE
    assert plan(bf16=False, zero_stage=2).optimizer == 12 * SHARE
    assert plan(bf16=False, offload_optimizer=True).host == (12 + 4 + 4) * SHARE


def test_lower_stages_keep_more():
    two, one = plan(zero_stage=2), plan(zero_stage=1)
    assert (two.weights, two.gradients, two.optimizer) == (2 * P, 4 * SHARE, 12 * SHARE)
    assert (one.weights, one.gradients, one.optimizer) == (2 * P, 6 * P, 12 * SHARE)
    assert plan().total < two.total < one.total


def test_offloading_moves_to_the_host():
    p = plan(offload_optimizer=True, offload_parameters=True)
    assert (p.weights, p.gradients, p.optimizer, p.update) == (0, 0, 0, 0)
    # Weights, gradients, their copy for the optimizer, and its state.
    assert p.host == (2 + 4 + 4 + 12) * SHARE


def test_only_supervised_tokens_have_logits():
    assert plan(supervised_tokens=1000).logits == 12 * 32000 * 1000 + 2 * 32000 * 5120


def test_without_checkpointing_every_layer_is_kept():
    kept = plan(gradient_checkpointing=False).activations
    assert kept == 8192 * (40 * (40_960 + 192_512) + 82_944)


def test_the_peak_is_in_the_pass_or_in_the_update():
    p = plan(max_tokens=1, reduce_bucket=1)
    assert p.total == p.weights + p.gradients + p.optimizer + p.update


def test_on_a_cpu_buckets_take_only_written_pages_and_phases_add_up():
    small = replace(LLAMA_13B, parameters=50_000_000)
    p = plan(shape=small, cuda=False, bf16=False, max_tokens=1)
    share = 50_000_000 // 8
    # All parameters gathered, and all gradients in the bucket and in its copy.
    assert p.communication == (4 + 8) * 50_000_000
    assert p.update == (4 + 8) * share
    held = (4 + 4 + 8) * share
    assert p.total == held + p.communication + p.activations + max(p.logits, p.update)


def test_frozen_parameters_have_neither_gradients_nor_optimizer():
    half = replace(LLAMA_13B, frozen_parameters=P // 2)
    p = plan(shape=half)
    assert p.weights == pytest.approx(2 * SHARE, rel=1e-6)
    assert (p.gradients, p.optimizer) == (4 * (SHARE // 2), 12 * (SHARE // 2))
    assert plan(shape=half, zero_stage=2).weights == 2 * P


def test_the_longest_pack_is_the_last_that_fits():
    longest = longest_pack(lambda tokens: plan(max_tokens=tokens), 80 * 10**9)
    assert longest > 8192
    assert fits(plan(max_tokens=longest), 80 * 10**9)
    assert not fits(plan(max_tokens=longest + 1), 80 * 10**9)
    assert longest_pack(lambda tokens: plan(max_tokens=tokens), 10**9) == 0


@pytest.mark.parametrize(
    ("family", "dtype", "attention"),
    [
        ("llama", "bfloat16", "sdpa"),
        ("llama", "float32", "eager"),
        ("qwen2", "bfloat16", "eager"),
        ("qwen2", "float32", "sdpa"),
    ],
)
def test_a_layers_activations_are_what_autograd_keeps(family, dtype, attention):
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

    tokens, sizes = 128, {"hidden_size": 128, "intermediate_size": 384, "num_attention_heads": 4}
    kinds = {
        "llama": (LlamaConfig, {}),
        "qwen2": (Qwen2Config, {"num_key_value_heads": 2}),
    }
    kind, more = kinds[family]

    def kept(layers):
        config = kind(vocab_size=32, num_hidden_layers=layers, **sizes, **more)
        model = AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, dtype), attn_implementation=attention
        )
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        storages = {}

        def keep(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                storages[storage.data_ptr()] = storage
            return tensor

        # Two conversations in a pack, so that there is a mask.
        positions = torch.arange(tokens // 2).repeat(2)[None]
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model.base_model(input_ids=torch.zeros_like(positions), position_ids=positions)
        return ModelShape.of(config), sum(s.nbytes() for s in storages.values())

    shape, three = kept(3)
    one = kept(1)[1]
    width = 2 if dtype == "bfloat16" else 4
    assert layer_activations(shape, width, tokens, attention) == pytest.approx(
        (three - one) / 2 / tokens, rel=0.05
    )
