"""Frozen parameters, parameter groups and weight decay."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ochat_ray.errors import UserError
from ochat_ray.train.config import TrainConfig
from ochat_ray.train.optimizer import (
    freeze,
    frozen_by,
    frozen_parameters,
    make_optimizer,
    parameter_groups,
)
from tests.tiny_models import SIZES


def built(family, **options):
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SIZES | options))


def decayed(model, **options):
    config = TrainConfig(weight_decay=0.1, **options)
    _, groups = parameter_groups(model, config)
    names = {id(p): name for name, p in model.named_parameters()}
    found = {names[id(p)]: g["weight_decay"] for g in groups for p in g["params"]}
    assert found.keys() == set(names.values())
    return {name for name, decay in found.items() if decay == 0.1}


def test_norms_and_biases_have_no_weight_decay():
    matrices = {"q", "k", "v", "o", "gate", "up", "down"}
    names = decayed(built("qwen2"))  # which has biases
    assert len(names) == 2 * len(matrices) + 2  # embeddings in and out
    assert not any("norm" in name or name.endswith("bias") for name in names)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("gpt_oss", {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}),
        ("phi", {}),
        ("gpt_bigcode", {}),
        ("mamba", {"state_size": 4}),
        ("jamba", {"num_experts": 2, "mamba_d_state": 4, "use_mamba_kernels": False}),
    ],
)
def test_biases_of_experts_and_mambas_states_have_no_weight_decay(family, options):
    names = decayed(built(family, **options))
    assert names
    assert not any(name.endswith(("bias", "A_log", ".D")) or "norm" in name for name in names)


def test_without_weight_decay_the_groups_are_those_of_the_learning_rates():
    """As in checkpoints of earlier versions."""
    model = built("llama")
    everything = list(model.parameters())
    (rate,), (group,) = parameter_groups(model, TrainConfig(learning_rate=1e-3))
    assert rate == 1e-3
    assert all(a is b for a, b in zip(group["params"], everything, strict=True))
    config = TrainConfig(learning_rate=1e-3, embedding_learning_rate=1e-3)
    rates, (rest, embedded) = parameter_groups(model, config)
    assert rates == [1e-3, 1e-3]
    assert [p.shape for p in embedded["params"]] == [(90, 32)] * 2
    assert len(rest["params"]) == len(everything) - 2


def test_a_step_decays_only_matrices():
    model = built("llama")
    config = TrainConfig(weight_decay=0.5, learning_rate=0.1)
    rates, groups = parameter_groups(model, config)
    optimizer = make_optimizer(groups, config)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        kept = 1.0 if "norm" in name else 1 - 0.1 * 0.5
        assert torch.allclose(parameter, kept * before[name]), name


def test_frozen_parameters_are_in_no_group():
    model = built("llama")
    freeze(model, ["embed", r"layers\.0\."])
    names = {id(p): name for name, p in model.named_parameters()}
    _, groups = parameter_groups(model, TrainConfig(embedding_learning_rate=1.0))
    trained = {names[id(p)] for group in groups for p in group["params"]}
    assert trained == {
        n for n in names.values() if not n.startswith(("model.embed", "model.layers.0"))
    }


def test_patterns_that_do_not_fit_are_one_clear_line():
    names = ["model.embed_tokens.weight", "lm_head.weight"]
    assert frozen_parameters(names, ["^lm"]) == {"lm_head.weight"}
    with pytest.raises(UserError, match=r"'layers' matches no parameter; names are like model.emb"):
        frozen_parameters(names, ["lm", "layers"])
    with pytest.raises(UserError, match="nothing is left to train"):
        frozen_parameters(names, ["weight"])
    config = TrainConfig(freeze=("embed_tokens", "lm_head"), embedding_learning_rate=1.0)
    with pytest.raises(UserError, match="--embedding-learning-rate has no effect"):
        frozen_by(config, AutoConfig.for_model("llama", **SIZES))
    with pytest.raises(UserError, match="matches no parameter"):  # the head is the embedding
        frozen_by(
            TrainConfig(freeze=("lm_head",)),
            AutoConfig.for_model("llama", **SIZES, tie_word_embeddings=True),
        )
