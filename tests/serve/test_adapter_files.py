"""Adapters in peft's format: what is served, and by which reason others are not."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from ochat_ray.errors import UserError
from ochat_ray.serve.adapter_files import AdapterRules, base_shapes, read_adapter
from tests.serve.adapter_directories import tensors_of, write_adapter

Q = "model.layers.0.self_attn.q_proj"
DOWN = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def rules(model_directory):
    names = ("tiny", "/models/tiny")
    return AdapterRules(base=base_shapes(model_directory), base_names=names, most_rank=8)


def test_the_bases_shapes_are_those_of_its_weights(rules, model_directory):
    from safetensors.torch import load_file

    weights = load_file(model_directory / "model.safetensors")
    assert rules.base == {name: tuple(weight.shape) for name, weight in weights.items()}


def test_an_adapter_has_pefts_scaling(rules, tmp_path):
    """In peft alpha / r, or with rsLoRA alpha / sqrt(r); the first pattern that matches counts."""
    plain = read_adapter(write_adapter(tmp_path / "a", rank=4, lora_alpha=6), rules)
    assert plain.rank == 4
    assert sorted(plain.layers)[0] == "model.layers.0.mlp.down_proj"
    assert len(plain.layers) == 6
    assert {m.scaling for m in plain.layers.values()} == {1.5}
    rs = read_adapter(write_adapter(tmp_path / "b", rank=4, lora_alpha=6, use_rslora=True), rules)
    assert {m.scaling for m in rs.layers.values()} == {3.0}

    tensors = tensors_of(0, rank=4) | {
        name: tensor for name, tensor in tensors_of(0, rank=2).items() if "q_proj" in name
    }
    patterns = {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {f"^{DOWN}": 1, "down_proj": 2}}
    own = read_adapter(write_adapter(tmp_path / "c", tensors=tensors, **patterns), rules)
    assert own.rank == 4
    assert (own.layers[Q].rank, own.layers[Q].scaling) == (2, 4.0)  # alpha 8
    assert own.layers[DOWN].scaling == 0.25
    assert own.layers[DOWN.replace("1", "0")].scaling == 0.5


def test_the_digest_is_that_of_the_content(rules, tmp_path):
    one, same, other = (
        write_adapter(tmp_path / name, seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    digests = [read_adapter(directory, rules).digest for directory in (one, same, other)]
    assert digests[0] == digests[1] != digests[2]
    write_adapter(same, 1, lora_alpha=9)
    assert read_adapter(same, rules).digest != digests[0]


@pytest.mark.parametrize("base", [None, "", "tiny", "org/tiny", "runs/tiny/model/", "/models/tiny"])
def test_the_base_has_the_name_of_its_directory_or_run(rules, tmp_path, base):
    assert read_adapter(write_adapter(tmp_path / "a", base_model_name_or_path=base), rules).layers


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"peft_type": "IA3"}, 'peft_type="IA3" is not LORA'),
        ({"task_type": "SEQ_CLS"}, 'task_type="SEQ_CLS"'),
        ({"base_model_name_or_path": "other/model"}, 'this server\'s model; .* write "tiny"'),
        ({"base_model_name_or_path": "runs/other/model"}, "is not this server's model"),
        ({"base_model_name_or_path": "/"}, "is not this server's model"),
        ({"bias": "all"}, 'bias="all"'),
        ({"use_dora": True}, "use_dora=true is not supported"),
        ({"modules_to_save": ["lm_head"]}, r'modules_to_save=\["lm_head"\] is not supported'),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"trainable_token_indices": [5]}, "trainable_token_indices"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"lora_bias": True}, "lora_bias"),
        ({"target_parameters": ["experts.w"]}, "target_parameters"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"of_a_later_peft": {"x": 1}}, "of_a_later_peft"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights=.* changes the base's weights"),
        ({"init_lora_weights": 1}, "init_lora_weights=1"),
        ({"rank_pattern": {"(a+)+$": 2}}, "regular expression"),
        ({"rank_pattern": {"q_proj": 2}}, r"q_proj has .* \[4, 64\] and \[64, 4\]; rank 2"),
        ({"r": 0}, "r=0 is not a valid number"),
        ({"r": True}, "r=true is not a valid number"),
        ({"lora_alpha": float("nan")}, "lora_alpha=NaN"),
        ({"lora_alpha": 10**400}, "lora_alpha=1000"),
        ({"r": 5}, "rank 5 and this base need"),
        ({"rank": 16, "lora_alpha": 1}, "rank 16 is above max_adapter_rank=8"),
        ({"target_modules": ["q_proj", "o_proj"]}, "no matrices for .*o_proj, which target"),
        ({"target_modules": ["q_proj"]}, "has matrices for .*down_proj, which target_modules does"),
    ],
)
def test_what_is_not_a_plain_adapter_of_this_base_is_refused_by_name(
    rules, tmp_path, config, reason
):
    with pytest.raises(UserError, match=reason) as caught:
        read_adapter(write_adapter(tmp_path / "a", **config), rules)
    assert "\n" not in str(caught.value)


def changed(**tensors):
    """Tensors of an adapter with some others, by the part of the name after the model's prefix."""
    own = tensors_of(0)
    own |= {f"base_model.model.{name.replace('/', '.')}": tensors[name] for name in tensors}
    return own


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({f"{Q}.lora_magnitude_vector": torch.ones(64)}, "lora_magnitude_vector.* is not a LoRA"),
        ({f"{Q}.lora_B.bias": torch.ones(64)}, "lora_B.bias.* is not a LoRA matrix"),
        ({"model.embed_tokens.weight": torch.ones(9, 64)}, "embed_tokens.* is not a LoRA matrix"),
        ({"model.embed_tokens.lora_embedding_A": torch.ones(4, 9)}, "embed_tokens.* is not a LoRA"),
        (
            {"lm_head.lora_A.weight": torch.ones(4, 64), "lm_head.lora_B.weight": torch.ones(9, 4)},
            "lm_head is a layer of the vocabulary",
        ),
        ({"model.layers.2.mlp.up_proj.lora_A.weight": torch.ones(4, 64)}, "only one of its two"),
        (
            {
                "model.layers.2.mlp.up_proj.lora_A.weight": torch.ones(4, 64),
                "model.layers.2.mlp.up_proj.lora_B.weight": torch.ones(128, 4),
            },
            "the base has no linear layer model.layers.2",
        ),
        ({f"{Q}.lora_A.weight": torch.ones(4, 32)}, r"q_proj has matrices of \[4, 32\]"),
        ({f"{Q}.lora_A.weight": torch.full((4, 64), torch.nan)}, "not finite"),
        ({f"{Q}.lora_A.weight": torch.full((4, 64), -torch.inf).half()}, "not finite"),
        ({f"{Q}.lora_A.weight": torch.full((4, 64), torch.inf).bfloat16()}, "not finite"),
        ({f"{Q}.lora_A.weight": torch.ones(4, 64).double()}, "F64"),
    ],
)
def test_other_tensors_than_those_of_linear_layers_are_refused_by_name(
    rules, tmp_path, tensors, reason
):
    with pytest.raises(UserError, match=reason):
        read_adapter(write_adapter(tmp_path / "a", tensors=changed(**tensors)), rules)


def test_a_file_that_is_cut_anywhere_is_refused(rules, tmp_path):
    directory = write_adapter(tmp_path / "a")
    path = directory / "adapter_model.safetensors"
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for end in (0, 4, 8, 100, header - 1, header, header + 1, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(UserError, match="incomplete or damaged"):
            read_adapter(directory, rules)
    for content in (whole + b"x", b"\xff" * 100, (9).to_bytes(8, "little") + b'{"a":[1]}'):
        path.write_bytes(content)
        with pytest.raises(UserError, match="incomplete or damaged"):
            read_adapter(directory, rules)
    path.write_bytes(whole)
    (directory / "adapter_config.json").write_text('{"r":')
    with pytest.raises(UserError, match="not a JSON object"):
        read_adapter(directory, rules)


def test_a_pickle_is_never_opened(rules, tmp_path):
    directory = write_adapter(tmp_path / "a")
    (directory / "adapter_model.safetensors").rename(directory / "adapter_model.bin")
    with pytest.raises(UserError, match="a pickle, which is never loaded"):
        read_adapter(directory, rules)


def test_tensors_that_overlap_are_refused(rules, tmp_path):
    directory = write_adapter(tmp_path / "a")
    header = {
        f"base_model.model.{Q}.lora_{side}.weight": {
            "dtype": "F32",
            "shape": shape,
            "data_offsets": [0, 1024],
        }
        for side, shape in (("A", [4, 64]), ("B", [64, 4]))
    }
    text = json.dumps(header).encode()
    content = len(text).to_bytes(8, "little") + text + bytes(1024)
    (directory / "adapter_model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="incomplete or damaged"):
        read_adapter(directory, rules)


def test_a_file_above_any_adapters_size_is_not_read(rules, tmp_path):
    directory = write_adapter(tmp_path / "a")
    with (directory / "adapter_model.safetensors").open("ab") as file:
        file.truncate(2**40)
    with pytest.raises(UserError, match="more than any adapter"):
        read_adapter(directory, rules)


def test_an_engine_without_patterns_refuses_them(model_directory, tmp_path):
    base = base_shapes(model_directory)
    rules = AdapterRules(base=base, base_names=("tiny",), most_rank=8, patterns=False)
    with pytest.raises(UserError, match="alpha_pattern is not supported by this engine"):
        read_adapter(write_adapter(tmp_path / "a", alpha_pattern={"q_proj": 3}), rules)


def test_bfloat16_matrices_keep_their_values(rules, tmp_path):
    tensors = {name: tensor.bfloat16() for name, tensor in tensors_of(3).items()}
    directory = write_adapter(tmp_path / "a", tensors=tensors)
    save_file(tensors, directory / "adapter_model.safetensors")
    dtype, data = read_adapter(directory, rules).layers[Q].a
    assert dtype == "BF16"
    found = torch.frombuffer(bytearray(data), dtype=torch.bfloat16).view(4, 64)
    assert torch.equal(found, tensors[f"base_model.model.{Q}.lora_A.weight"])


def test_an_adapter_of_another_template_is_rejected(rules, tmp_path):
    """Its prompts would be other ids than those of its training."""
    directory = write_adapter(tmp_path / "a")
    served = replace(rules, template=("chat", "{{ bos_token }}"))
    assert read_adapter(directory, served).layers  # of another program
    for card, reason in (
        ({"model_type": "chat", "template": {"source": "{{ bos_token }}"}}, None),
        ({"model_type": "chat", "template": {"source": "{{ eos_token }}"}}, "another chat templ"),
        ({"model_type": "openchat"}, "another chat template.* model_type=openchat, or train it"),
        ([], "ochat.json is not a JSON object"),
    ):
        (directory / "ochat.json").write_text(json.dumps(card))
        if reason is None:
            assert read_adapter(directory, served).layers
        else:
            with pytest.raises(UserError, match=reason):
                read_adapter(directory, served)
