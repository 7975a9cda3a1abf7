"""Names and layouts of files, compared with checkpoints on the hub."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ochat_ray.errors import UserError
from ochat_ray.train import round_trip
from ochat_ray.train.hub_format import HubFormat
from ochat_ray.train.round_trip import check_exportable

SIZES = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}


def meta_model(model_type, **sizes):
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **SIZES | sizes))


def experts(**tensors):
    return {f"model.layers.0.mlp.experts.{name}": tensor for name, tensor in tensors.items()}


def test_fused_experts_become_the_hub_s_one_by_one():
    hub = HubFormat(meta_model("mixtral", num_local_experts=2, num_attention_heads=4))
    fused = torch.arange(2 * 48 * 16).reshape(2, 48, 16)
    down = torch.arange(2 * 16 * 24).reshape(2, 16, 24)
    written = hub.to_file(experts(gate_up_proj=fused, down_proj=down))
    expert = "model.layers.0.block_sparse_moe.experts.1"
    assert len(written) == 6
    assert torch.equal(written[f"{expert}.w1.weight"], fused[1, :24])
    assert torch.equal(written[f"{expert}.w3.weight"], fused[1, 24:])
    assert torch.equal(written[f"{expert}.w2.weight"], down[1])
    opened = hub.to_run_time(written)
    assert torch.equal(opened["model.layers.0.mlp.experts.gate_up_proj"], fused)


def test_the_head_of_gpt_neox_is_called_embed_out():
    hub = HubFormat(meta_model("gpt_neox", num_attention_heads=4))
    assert list(hub.to_file({"lm_head.weight": torch.zeros(1)})) == ["embed_out.weight"]


def test_each_fused_tensor_is_converted_by_itself():
    model = meta_model("deepseek_v3", num_attention_heads=4, num_hidden_layers=4)
    groups = HubFormat(model).groups(model.state_dict())
    assert all(len(group) == 1 for group in groups)
    assert sorted(name for (name,) in groups) == sorted(model.state_dict())


@pytest.mark.parametrize("model_type", ["llama", "mixtral", "phi", "gptj", "deepseek_v3", "jamba"])
def test_models_that_survive_the_round_trip_are_accepted(model_type):
    check_exportable(AutoConfig.for_model(model_type, num_hidden_layers=4))


def test_a_model_that_would_not_survive_the_round_trip_is_rejected(monkeypatch):
    class Lossy(HubFormat):
        def to_file(self, tensors):
            return {n: t for n, t in super().to_file(tensors).items() if "lm_head" not in n}

    monkeypatch.setattr(round_trip, "HubFormat", Lossy)
    with pytest.raises(UserError, match=r"type llama cannot be exported .* lm_head\.weight would"):
        check_exportable(AutoConfig.for_model("llama"))


@pytest.mark.parametrize(
    ("model_type", "problem"),
    [
        (
            "emu3",
            "Unrecognized configuration class",
        ),  # the config of its text model has no auto class
        ("xlstm", "has no attribute 'embeddings'"),  # its vocabulary cannot be resized
        ("moshi", "input and output vocabularies differ"),
        ("reformer", "is_decoder=True"),
    ],
)
def test_a_model_that_cannot_be_loaded_or_takes_no_token_is_rejected(model_type, problem):
    with pytest.raises(UserError, match=rf"cannot be exported .*{problem}"):
        check_exportable(AutoConfig.for_model(model_type))


def test_the_configuration_that_is_checked_keeps_its_vocabulary():
    config = AutoConfig.for_model("llama", **SIZES, num_attention_heads=2)
    check_exportable(config)
    assert config.vocab_size == 32
