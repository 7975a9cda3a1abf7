"""Options of --lora, the shape of an adapted model, and refusals before a run starts."""

import importlib.util
import json
from dataclasses import asdict, replace
from unittest.mock import Mock

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, FalconConfig, LlamaConfig, MixtralConfig

from ochat_ray.errors import UserError
from ochat_ray.train import adapter_export
from ochat_ray.train.config import TrainConfig
from ochat_ray.train.failures import Place
from ochat_ray.train.loop import _Worker
from ochat_ray.train.lora import adapt, check_adaptable, shape_of, trained_adapters
from ochat_ray.train.lora_options import LoraOptions
from ochat_ray.train.memory import check_holds, estimate_run
from tests.tiny_models import SIZES


def test_options_and_their_normal_form():
    options = LoraOptions.parse("dora=true, targets=v_proj+q_proj ,r=16,dropout=0.0")
    assert options == LoraOptions(r=16, alpha=32, targets=("q_proj", "v_proj"), dora=True)
    assert str(options) == "r=16,alpha=32,targets=q_proj+v_proj,dora=true"
    for text in (
        "r=8,alpha=0.5,targets=all-linear,rslora=true",
        "r=8,alpha=16,targets=all-linear,quantize=nf4",
        str(options),
    ):
        assert str(LoraOptions.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "'' is not a pair; expected"),
        ("r=16,", "'' is not a pair"),
        ("alpha=32", "lacks the rank r"),
        ("r=0", "r must be a positive integer, not 0"),
        ("r=1.5", "r must be a positive integer, not 1.5"),
        ("r=big", "r must be a number, not big"),
        ("r=nan", "r must be a number, not nan"),
        ("r=8,alpha=-1", "alpha must be a positive number, not -1"),
        ("r=8,rank=8", "unknown key 'rank'; the keys are r, alpha, targets"),
        ("r=8,r=16", "r is given twice"),
        ("r=8,dora=yes", "dora must be true or false, not yes"),
        ("r=8,targets=q_proj+", r"targets=q_proj\+ must be all-linear, or different names"),
        ("r=8,targets=q_proj+q_proj", "different names"),
        ("r=8,targets=all-linear+lm_head", "must be all-linear, or"),
        ("r=8,dropout=0.05", "dropout=0.05 is not supported: with dropout, loss and gradient"),
        ("r=8,quantize=int8", "quantize=int8 is not supported; give quantize=nf4, or leave it out"),
        ("r=8,dora=true,quantize=nf4", "does not work with ZeRO-3; give --zero-stage 2"),
    ],
)
def test_wrong_options_are_one_clear_line(text, line):
    with pytest.raises(UserError, match=line) as caught:
        replace(TrainConfig.for_recipe("openchat"), lora=text).check()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"lora": None, "merge": True}, "--merge has no effect without --lora"),
        ({"freeze": ("embed",)}, "--freeze has no effect with --lora"),
        ({"embedding_learning_rate": 1e-5}, "--embedding-learning-rate has no effect"),
        ({"rope_scaling": "linear"}, "--rope-scaling changes .* give --merge"),
        (
            {"lora": "r=8,quantize=nf4", "offload_parameters": True},
            "--offload-parameters does not work with --lora quantize=nf4",
        ),
    ],
)
def test_options_that_adapters_exclude(changes, line):
    config = replace(TrainConfig.for_recipe("openchat"), **{"lora": "r=8"} | changes)
    with pytest.raises(UserError, match=line):
        config.check()


def test_identity_has_the_normal_form_and_is_unchanged_without_adapters():
    config = TrainConfig.for_recipe("openchat")
    assert not {"lora", "merge"} & config.identity().keys()
    identity = replace(config, lora="alpha=32,r=16", merge=True).identity()
    assert identity["lora"] == "r=16,alpha=32,targets=all-linear"
    assert identity["merge"] is True


def test_without_bitsandbytes_a_quantized_base_is_refused_in_one_line(monkeypatch):
    config = replace(TrainConfig.for_recipe("openchat"), lora="r=8,quantize=nf4")
    config.check()
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name)
    )
    with pytest.raises(UserError, match=r"pip install 'ochat-ray\[qlora\]'$"):
        config.check()
    # A worker of another host than the one where the options were checked.
    context = Mock(get_world_rank=lambda: 1)
    monkeypatch.setattr("ray.train.get_context", lambda: context)
    with pytest.raises(UserError, match=r"pip install 'ochat-ray\[qlora\]'$"):
        _Worker({"config": asdict(config)}, Mock(), Place())


def test_a_base_by_its_hub_name_is_not_loaded_if_the_memory_does_not_hold_it(monkeypatch):
    """There are no files whose sizes could be added up."""
    monkeypatch.setattr(
        adapter_export, "load_config", lambda _: LlamaConfig(**SIZES), raising=False
    )
    memory = Mock(available=1000)
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    logits = torch.zeros(1, 1)
    assert adapter_export.check_adapter("d", "owner/name", None, logits, torch.bfloat16) is None
    assert adapter_export.unquantized_difference("d", "owner/name", None, logits) is None


def test_a_model_of_which_transformers_quantizes_nothing_is_refused():
    """It replaces only layers of exactly the class nn.Linear, and only warns if there is none."""
    falcon = FalconConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1, vocab_size=9)
    shape_of(TrainConfig(lora="r=4"), falcon)
    with pytest.raises(UserError, match=r"quantize=nf4 would quantize none .* of type falcon"):
        shape_of(TrainConfig(lora="r=4,quantize=nf4"), falcon)


def test_the_quantized_model_must_fit_before_it_is_partitioned(adapted):
    config, shape = adapted("r=4,quantize=nf4")
    plan = estimate_run(config, shape, world_size=99, bf16=True, attention="packed")
    check_holds(plan, plan.loading, 99)
    with pytest.raises(UserError, match=r"before ZeRO-3 partitions .* devices with more memory"):
        check_holds(plan, plan.loading - 1, 99)


@pytest.fixture
def adapted(model_directory):
    """Return the shape of the tiny Llama with adapters."""

    def adapted(lora):
        config = TrainConfig(model=str(model_directory), lora=lora, num_workers=2, zero_stage=3)
        return config, shape_of(config, AutoConfig.from_pretrained(model_directory))

    return adapted


def test_shape_counts_adapters_as_trained_and_plans_memory_for_them_alone(adapted):
    """By hand: a layer's q and o are 64 x 64, k and v 32 x 64, the feed-forward part 128 x 64."""
    _, plain = adapted(None)
    config, shape = adapted("r=4")
    trained = 2 * 4 * (2 * (64 + 64) + 2 * (32 + 64) + 3 * (128 + 64))
    assert shape.frozen_parameters == plain.parameters
    assert shape.parameters == plain.parameters + trained
    assert shape.matmul_parameters == plain.matmul_parameters + trained
    assert shape.frozen_head
    # Each base matrix but those before the first adapter has a gradient of its input, not its own.
    assert shape.frozen_operations > 0
    options = {"world_size": 2, "bf16": True, "attention": "packed", "cuda": False}
    memory = estimate_run(config, shape, **options)
    assert memory.optimizer == 12 * trained // 2
    assert memory.gradients == 4 * trained // 2
    _, dora = adapted("r=4,targets=q_proj,dora=true")
    assert dora.parameters - plain.parameters == 2 * (4 * (64 + 64) + 64)


def test_memory_of_a_quantized_base_is_half_a_byte_per_weight_and_the_scales(adapted):
    """By hand: the same sizes as above; embeddings, head and norms keep the training's dtype."""
    config, shape = adapted("r=4,quantize=nf4")
    _, plain = adapted("r=4")
    assert replace(shape, quantized_parameters=0) == plain
    quantized = 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 128 * 64)
    assert shape.quantized_parameters == quantized
    others = 2 * (plain.parameters - quantized)
    scales = quantized // 64 + 4 * -(-quantized // (64 * 256))  # one byte, and four of the second
    options = {"world_size": 2, "bf16": True, "attention": "packed", "cuda": False}
    one = estimate_run(replace(config, zero_stage=2), shape, **options)
    assert one.weights == pytest.approx(others + quantized / 2 + scales, abs=8)
    assert one.loading == 0
    # ZeRO-3 partitions the weights after they are loaded, and not their scales.
    three = estimate_run(config, shape, **options)
    assert three.weights == pytest.approx(others / 2 + quantized / 4 + scales, abs=8)
    assert three.loading == pytest.approx(one.weights, abs=8)
    # Among the gathered weights and buckets there is one dequantized matrix.
    without = estimate_run(config, plain, **options)
    gathered = 2 * plain.parameters - (others + quantized // 2)
    assert without.communication - three.communication == gathered - 2 * 64 * 128


@pytest.mark.parametrize(
    ("targets", "line"),
    [
        ("query", "the target query matches no layer; linear layers are down_proj, gate_proj"),
        ("lm_head", "matches lm_head, which is an embedding or the output head"),
        ("embed_tokens", "matches model.embed_tokens, which is an embedding"),
        ("self_attn", "matches model.layers.0.self_attn, which is not a linear layer"),
    ],
)
def test_targets_that_do_not_fit_the_model(adapted, targets, line):
    with pytest.raises(UserError, match=line):
        adapted(f"r=4,targets=q_proj+{targets}")


@pytest.mark.parametrize("dora", ["false", "true"])
def test_experts_that_peft_would_adapt_are_refused(dora):
    model_config = MixtralConfig(**SIZES | {"num_hidden_layers": 1}, num_local_experts=4)
    with pytest.raises(UserError, match=r"fused experts.*name attention's layers"):
        shape_of(TrainConfig(lora=f"r=2,dora={dora}"), model_config)
    shape = shape_of(TrainConfig(lora=f"r=2,targets=q_proj+v_proj,dora={dora}"), model_config)
    magnitudes = (32 + 16) * (dora == "true")  # rows of q, 32 x 32, and of v, 16 x 32
    assert shape.parameters - shape.frozen_parameters == 2 * (64 + 48) + magnitudes


def test_a_tied_embedding_is_left_out_of_checkpoints_under_its_second_name():
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES, tie_word_embeddings=True))
    adapt(model, TrainConfig(lora="r=2"))
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    left = model.state_dict().keys() - frozen  # as DeepSpeed does
    assert left == trained_adapters(model).keys()


def test_a_template_with_a_new_end_of_turn_token_is_refused(model_directory, tmp_path):
    """Its embedding would not be trained, so the model could not end an answer."""
    config = TrainConfig(model=str(model_directory), lora="r=4")
    model_config = AutoConfig.from_pretrained(model_directory)
    check_adaptable(config, model_config, {"model_type": "openchat"})  # this base has the token
    base = tmp_path / "base"
    base.mkdir()
    tokenizer = json.loads((model_directory / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = [
        t for t in tokenizer["added_tokens"] if t["content"] != "<|end_of_turn|>"
    ]
    (base / "tokenizer.json").write_text(json.dumps(tokenizer))
    for name in ("tokenizer_config.json", "config.json"):
        (base / name).write_text((model_directory / name).read_text())
    with pytest.raises(UserError, match=r"--lora trains no embeddings.*--recipe chat"):
        check_adaptable(replace(config, model=str(base)), model_config, {"model_type": "openchat"})
    check_adaptable(replace(config, model=str(base)), model_config, {"model_type": "chat"})
