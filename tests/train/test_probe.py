"""The probe accepts exact modes, names differences, and detects known errors."""

import numpy as np
import pytest
import torch
import transformers
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM

from ochat_ray.errors import UserError
from ochat_ray.models.base_model import without_dropout
from ochat_ray.train import forward, probe
from ochat_ray.train.batch import make_batch
from ochat_ray.train.forward import PACKED_SDPA, register_packed_sdpa
from ochat_ray.train.probe import candidates_of, choose_attention_mode
from ochat_ray.train.tiny import layer_kinds, tiny_config
from tests.tiny_models import SIZES

AUTO = candidates_of("auto", PACKED_SDPA)
LINEAR_AND_FULL = ["linear_attention", "linear_attention", "linear_attention", "full_attention"]


def config_of(name, **changes):
    return without_dropout(getattr(transformers, f"{name}Config")(**changes))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("Llama", {"tie_word_embeddings": True}),
        ("Mistral", {"sliding_window": 4096}),
        ("Gemma2", {}),  # soft-capping, and windows in every second layer
        ("GptOss", {}),  # sinks, and windows in every second layer
        ("StableLm", {}),
        ("Nemotron", {"num_key_value_heads": 32}),
        ("GPT2", {}),  # learned positions
        ("OPT", {}),  # learned positions with an offset
        ("DeepseekV3", {}),
    ],
)
def test_families_that_train_in_packs(name, changes):
    mode = choose_attention_mode(config_of(name, **changes), AUTO)
    assert (mode.attention, mode.packed, mode.because) == (PACKED_SDPA, True, "")
    assert mode.logits_error < 1e-4
    assert mode.gradient_error < 1e-4


@pytest.mark.parametrize(
    ("name", "changes", "because"),
    [
        ("FalconH1", {}, r"see each other \(layers: hybrid\)"),
        ("Qwen3Next", {"layer_types": LINEAR_AND_FULL * 12}, r"\(layers: linear_attention\)"),
        ("Falcon", {}, "packed conversations of a Falcon model see each other"),
        ("Falcon", {"alibi": True}, "packed conversations of a Falcon model see each other"),
        ("Bloom", {}, "the attention of a Bloom model takes no packs"),
        ("GPTNeo", {}, "the attention of a GPTNeo model takes no packs"),
    ],
)
def test_families_that_train_one_conversation_at_a_time(name, changes, because):
    mode = choose_attention_mode(config_of(name, **changes), AUTO)
    assert not mode.packed
    with pytest.raises(AssertionError, match=because):
        raise AssertionError(mode.because)
    assert mode.logits_error < 1e-4
    assert mode.gradient_error < 1e-4


@pytest.fixture
def old_attention(monkeypatch):
    """ochat_ray's attention of commit 478b668, which ignored unknown arguments."""

    def old(module, query, key, value, attention_mask, *, dropout=0.0, scaling=None, **_):
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        parts = (tensor.split(attention_mask, dim=2) for tensor in (query, key, value))
        attended = [
            sdpa_attention_forward(module, q, k, v, None, dropout, scaling, is_causal=True)[0]
            for q, k, v in zip(*parts, strict=True)
        ]
        return torch.cat(attended, dim=1), None

    def register():
        AttentionInterface.register(PACKED_SDPA, old)
        AttentionMaskInterface.register(PACKED_SDPA, lambda **_: forward._pack_lengths.get())

    monkeypatch.setattr(probe, "register_packed_sdpa", register)
    yield
    register_packed_sdpa()


@pytest.mark.parametrize(
    ("name", "changes", "layer"),
    [
        ("Mistral", {"sliding_window": 4096}, "MistralDecoderLayer"),
        ("Gemma2", {}, "sliding_attention"),
        # The missing soft-capping must be detected, not only the window.
        ("Gemma2", {"layer_types": ["full_attention"] * 26}, "full_attention"),
        ("GptOss", {"layer_types": ["full_attention"] * 36}, "full_attention"),
        ("Qwen3Next", {"layer_types": LINEAR_AND_FULL * 12}, "linear_attention"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_old_attention_is_rejected(old_attention, name, changes, layer, dtype):
    with pytest.raises(UserError, match=rf"cannot be trained exactly .*\(layers: {layer}\)"):
        choose_attention_mode(config_of(name, **changes), [(PACKED_SDPA, True)], dtype=dtype)


@pytest.mark.parametrize("name", ["Llama", "Gemma2", "Qwen3Moe"])
def test_rounding_in_bfloat16_is_accepted(name):
    assert choose_attention_mode(config_of(name), AUTO, dtype=torch.bfloat16).packed


def test_an_error_beyond_rounding_is_detected_without_float32(old_attention, monkeypatch):
    """As for flash-attn, which does not support float32."""
    monkeypatch.setattr(probe, "_EXACT", (1e9, 1e9))
    with pytest.raises(UserError, match="cannot be trained exactly"):
        choose_attention_mode(config_of("Gemma2"), [(PACKED_SDPA, True)], dtype=torch.bfloat16)


def test_a_window_hides_earlier_tokens():
    """One layer, window 3: the logits at position 5 depend only on the tokens 3, 4, 5."""
    torch.manual_seed(0)
    config = transformers.MistralConfig(
        **SIZES | {"num_hidden_layers": 1}, sliding_window=3, initializer_range=0.5
    )
    register_packed_sdpa()
    model = AutoModelForCausalLM.from_config(config, attn_implementation=PACKED_SDPA)
    other = np.array([7, 7, 7])

    def last(*tokens):
        ids = np.array([*tokens, 9])
        return forward.logits(model, make_batch([(other, other), (ids, ids)]))[-1]

    before = last(1, 2, 3, 4, 5, 6)
    assert torch.equal(last(1, 2, 8, 4, 5, 6), before)
    assert not torch.allclose(last(1, 2, 3, 8, 5, 6), before, atol=1e-2)


def test_unknown_arguments_are_rejected():
    q = torch.randn(1, 2, 4, 8)
    mask = forward.PackMask([4], [None])
    module = torch.nn.Module()
    with pytest.raises(TypeError, match=r"does not know the arguments \['position_bias'\]"):
        forward._packed_sdpa(module, q, q, q, mask, position_bias=torch.zeros(1))
    with pytest.raises(TypeError, match="needs a model with transformers' masks"):
        forward._packed_sdpa(module, q, q, q, None)
    forward._packed_sdpa(module, q, q, q, mask, position_bias=None, use_cache=False)


def test_soft_capping_and_sinks_are_those_of_transformers():
    from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward as gemma2
    from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward as gpt_oss

    torch.manual_seed(0)
    module = torch.nn.Module().eval()
    module.num_key_value_groups, module.sinks = 2, torch.randn(4)
    q, k, v = torch.randn(1, 4, 5, 8), torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 8)
    causal = torch.zeros(5, 5).masked_fill(~torch.ones(5, 5).tril().bool(), -1e30)
    mask = forward.PackMask([5], [None])
    ours, _ = forward._packed_sdpa(module, q, k, v, mask, scaling=2.0, softcap=1.5)
    assert torch.allclose(ours, gemma2(module, q, k, v, causal, 0.0, 2.0, 1.5)[0], atol=1e-6)
    ours, _ = forward._packed_sdpa(module, q, k, v, mask, scaling=0.5, s_aux=module.sinks)
    assert torch.allclose(ours, gpt_oss(module, q, k, v, causal, 0.5)[0], atol=1e-6)


def test_the_probe_does_not_change_the_random_state():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    choose_attention_mode(config_of("Llama"), AUTO)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("Bert", "attends to later tokens; it is not a causal language model"),
        ("CTRL", "no gradient checkpointing in transformers; give --no-gradient-checkpointing"),
        # A default that its own class cannot build: no head_dim.
        ("Ministral", "cannot test a small Ministral model"),
    ],
)
def test_a_family_that_cannot_be_probed_is_one_clear_line(name, line):
    with pytest.raises(UserError, match=line):
        choose_attention_mode(config_of(name), AUTO)


def test_an_attention_that_a_family_lacks_is_one_clear_line():
    candidates = candidates_of("sdpa", PACKED_SDPA)
    with pytest.raises(UserError, match=r"Bloom model cannot be trained exactly here: .*auto"):
        choose_attention_mode(config_of("Bloom"), candidates)


@pytest.mark.parametrize(
    ("name", "changes", "kinds"),
    [
        ("Gemma3Text", {}, {"sliding_attention", "full_attention"}),
        ("Qwen3Next", {"layer_types": LINEAR_AND_FULL * 12}, set(LINEAR_AND_FULL)),
        ("GPTNeo", {}, {"global", "local"}),
    ],
)
def test_a_tiny_model_has_every_kind_of_layer(name, changes, kinds):
    config = config_of(name, **changes)
    small = tiny_config(config)
    assert set(layer_kinds(small)) == set(layer_kinds(config)) == kinds
    assert small.num_hidden_layers == len(layer_kinds(small)) == 2


def test_a_tiny_model_has_dense_and_sparse_layers():
    config = config_of("DeepseekV3")
    kinds = {type(layer.mlp).__name__ for layer in built(tiny_config(config)).model.layers}
    assert kinds == {"DeepseekV3MLP", "DeepseekV3MoE"}
    assert config.num_hidden_layers == 61  # the original is unchanged


def built(config):
    return AutoModelForCausalLM.from_config(config)


def test_a_reference_of_bfloat16_weights_is_exact_in_float32():
    """Its weights are rounded to bfloat16, but not the frequencies of its rotary embeddings."""
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=128, num_attention_heads=4, num_hidden_layers=2
    )
    register_packed_sdpa()
    tried = probe._Probe(config, torch.device("cpu"), torch.bfloat16, True)
    logits_error, gradient_error = tried._errors("eager", False, torch.float32)
    assert logits_error < 1e-5
    assert gradient_error < 1e-4
