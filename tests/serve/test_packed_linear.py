"""Packed layers against PyTorch's own, in bfloat16."""

from __future__ import annotations

import pytest
import torch

from ochat_ray.serve.engines.packed_linear import PackedLinear, pack_linears

pytestmark = pytest.mark.skipif(
    not torch.cpu._is_avx512_bf16_supported(), reason="this CPU does not compute in bfloat16"
)


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gpt_neox"])
def test_a_packed_model_says_the_same(model_type):
    """Llama has no biases, qwen2 has some, and gpt_neox names its layers otherwise."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        model_type,
        vocab_size=300,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
    )
    model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    batches = [torch.randint(300, (1, length)) for length in (1, 7, 40)]
    with torch.no_grad():
        wanted = [model(ids).logits for ids in batches]
        linears = sum(isinstance(module, torch.nn.Linear) for module in model.modules())
        assert pack_linears(model) == linears
        assert not any(isinstance(module, torch.nn.Linear) for module in model.modules())
        for ids, logits in zip(batches, wanted, strict=True):
            assert torch.allclose(model(ids).logits, logits, atol=0.06, rtol=0.02)


def test_nothing_is_kept_behind_a_forward_pass():
    class Attention(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for name in ("q_proj", "k_proj", "v_proj"):
                setattr(self, name, torch.nn.Linear(32, 32, bias=False, dtype=torch.bfloat16))

    attention = Attention()
    reference = [p.detach().clone() for p in attention.parameters()]
    pack_linears(attention)
    layers = [attention.q_proj, attention.k_proj, attention.v_proj]
    assert all(isinstance(layer, PackedLinear) for layer in layers)
    packed = layers[0]._packed
    assert all(layer._packed is packed for layer in layers)
    inputs = torch.randn(1, 5, 32, dtype=torch.bfloat16)
    for _ in range(2):
        outputs = [layer(inputs) for layer in layers]
        for weight, output in zip(reference, outputs, strict=True):
            assert torch.allclose(output, inputs @ weight.T, atol=0.05)
        assert packed._inputs is None
    # Written over between two calls: the same tensor, but another input.
    layers[0](inputs)
    again = layers[0](inputs.neg_())
    assert torch.allclose(again, inputs @ reference[0].T, atol=0.05)


def test_float32_stays_as_it_is():
    linear = torch.nn.Sequential(torch.nn.Linear(8, 8))
    assert pack_linears(linear) == 0
    assert isinstance(linear[0], torch.nn.Linear)
