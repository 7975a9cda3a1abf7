"""DeepSpeed's configuration from the options, and a user's JSON merged in."""

import json
import re

import pytest

from ochat_ray.errors import UserError
from ochat_ray.train.config import TrainConfig
from ochat_ray.train.deepspeed_check import problem_of
from ochat_ray.train.deepspeed_config import decisive_override, deepspeed_config, read_override


def made(override=None, tmp_path=None, **options):
    if override is not None:
        (tmp_path / "ds.json").write_text(
            override if isinstance(override, str) else json.dumps(override)
        )
        options["deepspeed"] = str(tmp_path / "ds.json")
    config = TrainConfig(**options)
    file = read_override(config.deepspeed)
    return deepspeed_config(config, file, world_size=8, bf16=True, cuda=True)


def test_the_batch_is_the_number_of_workers_and_gradients_add_up_in_float32():
    config = made()
    assert config["train_batch_size"] == 8
    assert config["data_types"]["grad_accum_dtype"] == "fp32"
    assert config["bf16"] == {"enabled": True}
    assert config["zero_optimization"]["stage"] == 3


def test_offload_flags():
    zero = made(offload_optimizer=True, offload_parameters=True)["zero_optimization"]
    assert zero["offload_optimizer"]["device"] == zero["offload_param"]["device"] == "cpu"
    assert "offload_param" not in made(offload_optimizer=True)["zero_optimization"]


@pytest.mark.parametrize(
    "zero", [{"offload_param": {"device": "cpu"}}, {"cpu_offload_param": True}]
)
def test_a_users_json_does_not_offload_a_quantized_base(tmp_path, zero):
    made({"zero_optimization": zero}, tmp_path, lora="r=8")
    with pytest.raises(
        UserError, match=r"offload_param\), which does not work with --lora quantiz"
    ):
        made({"zero_optimization": zero}, tmp_path, lora="r=8,quantize=nf4")
    none = {"zero_optimization": {"offload_param": {"device": "none"}}}
    made(none, tmp_path, lora="r=8,quantize=nf4")


def test_a_users_json_is_merged_in(tmp_path):
    override = {
        "zero_optimization": {"stage": 3, "reduce_bucket_size": 1e8, "overlap_comm": False},
        "train_batch_size": "auto",
        "wall_clock_breakdown": True,
    }
    config = made(override, tmp_path)
    assert config["zero_optimization"]["reduce_bucket_size"] == 1e8
    assert config["zero_optimization"]["overlap_comm"] is False
    assert config["zero_optimization"]["contiguous_gradients"] is True
    assert config["wall_clock_breakdown"] is True
    assert config["train_batch_size"] == 8


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ({"zero_optimization": {"stage": 2}}, r"zero_optimization\.stage to 2.*--zero-stage"),
        ({"gradient_clipping": 0.5}, r"gradient_clipping to 0\.5.*--max-grad-norm"),
        ({"optimizer": {"type": "SGD"}}, r"optimizer\.type.*--learning-rate"),
        ({"fp16": {"enabled": True}}, r"fp16\.enabled.*--dtype"),
        ({"gradient_accumulation_steps": 4}, "gradient_accumulation_steps to 4.*--sequences"),
        ({"torch_autocast": {"enabled": True}}, r"torch_autocast\.enabled.*--dtype"),
        ({"zero_optimization": True}, "in place of the section zero_optimization"),
        ({"bf16": None}, "in place of the section bf16"),
        ({"steps_per_print": {"x": 1}}, "has .* steps_per_print, or a section in place"),
        ({"zero_optimization": {"overlap_comm": {}}}, r"section zero_optimization\.overlap_comm"),
        ("[1]", "must hold one JSON object"),
        ("{", "cannot read"),
    ],
)
def test_a_contradiction_is_one_clear_line(tmp_path, override, line):
    with pytest.raises(UserError, match=line):
        made(override, tmp_path)


def test_a_key_may_repeat_the_value_of_an_option(tmp_path):
    assert made({"gradient_clipping": 1.0, "bf16": {"enabled": True}}, tmp_path) == made()


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ({}, None),
        ({"zero_optimization": {"stage3_prefetch_bucket_size": 10, "overlap_comm": True}}, None),
        ({"activation_checkpointing": {"partition_activations": True}}, None),
        ({"steps_per_prnt": 5}, "steps_per_prnt, which .* did you mean steps_per_print?"),
        ({"aio": {"blok_size": 1}}, r"aio\.blok_size, which .* did you mean block_size?"),
        ({"flops_profiler": {"enable": True}}, r"flops_profiler\.enable, .* did you mean enabled?"),
        ({"zero_optimization": {"sub_grup_size": 5}}, "sub_grup_size, .* did you mean sub_group_"),
        ({"zero_optimization": {"sub_group_size": "x"}}, 'sub_group_size "x": Input should be'),
        ({"zero_optimization": 3}, "rejected by DeepSpeed: TypeError"),
        ({"sparse_gradients": True}, "rejected by DeepSpeed: DeepSpeedConfigError"),
    ],
)
def test_a_key_or_value_that_deepspeed_does_not_know_is_named(override, line):
    ours = deepspeed_config(TrainConfig(), None, world_size=1, bf16=True, cuda=True)
    zero = override.get("zero_optimization")
    if isinstance(zero, dict):
        override = {"zero_optimization": ours["zero_optimization"] | zero}
    problem = problem_of(ours | override)
    assert problem is None if line is None else re.search(line, problem)


def test_the_identity_has_the_keys_of_a_users_json_that_affect_the_result():
    override = {
        "steps_per_print": 1,
        "gradient_clipping": 1.0,
        "train_batch_size": "auto",
        "gradient_predivide_factor": 2.0,
        "zero_optimization": {"sub_group_size": 5, "zero_quantized_gradients": True},
    }
    assert decisive_override({}) == {}
    assert decisive_override(override) == {
        "gradient_predivide_factor": 2.0,
        "zero_optimization.zero_quantized_gradients": True,
    }
