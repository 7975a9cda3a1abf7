"""Checks of a base's weights that read only headers, in directories and at URIs."""

import json
import struct
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig, T5Config

from ochat_ray.errors import UserError
from ochat_ray.models.base_model import load_config, load_model
from ochat_ray.models.weights import check_config, check_files, check_tensors, check_vocabulary
from tests.tiny_models import SIZES

UP = "model.layers.1.mlp.up_proj.weight"


def saved(directory, config=None, *, shards=False, without=(), reshaped=()):
    model = AutoModelForCausalLM.from_config(config or LlamaConfig(**SIZES))
    state = {k: v for k, v in model.state_dict().items() if k not in without}
    for name in reshaped:
        state[name] = torch.zeros(3, 3)
    sharding = {"max_shard_size": "8KB"} if shards else {}
    model.save_pretrained(directory, state_dict=state, **sharding)
    return str(directory)


def checked(path):
    tensors = check_files(path)
    assert tensors is not None
    return check_tensors(path, tensors, load_config(path))


@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SIZES),
        LlamaConfig(**SIZES, tie_word_embeddings=True),  # has no separate lm_head
        MixtralConfig(**SIZES, num_local_experts=2),  # is saved under other names than at run time
    ],
)
def test_complete_models_are_accepted(tmp_path, config, shards):
    path = saved(tmp_path / "m", config, shards=shards)
    assert (tmp_path / "m/model.safetensors.index.json").exists() == shards
    assert checked(path) == []
    assert checked((tmp_path / "m").as_uri()) == []


def test_a_model_that_is_not_causal_is_one_clear_line():
    with pytest.raises(UserError, match=r"not a causal language model .*model_type t5"):
        check_tensors("base", {}, T5Config())


def test_a_hub_name_and_a_pickle_have_no_headers_to_read(tmp_path):
    assert check_files("hub/name") is None
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80" * 2000)
    assert check_files(str(tmp_path)) is None


@pytest.mark.parametrize("uri", [False, True])
def test_missing_tensors_are_named(tmp_path, uri):
    path = saved(tmp_path / "m", without=[UP])
    with pytest.raises(UserError, match=rf"lack {UP}, which the model of its config.json has"):
        checked((tmp_path / "m").as_uri() if uri else path)
    with pytest.raises(UserError, match=rf"lack {UP}"):
        load_model(path, torch.float32)


def test_tensors_of_another_shape_are_named(tmp_path):
    path = saved(tmp_path / "m", reshaped=[UP])
    line = rf"1 weights .*{UP} is \(3, 3\), expected \(48, 32\)"
    with pytest.raises(UserError, match=line):
        checked(path)
    with pytest.raises(UserError, match=line):
        load_model(path, torch.float32)


def test_tensors_that_the_model_does_not_have_are_named(tmp_path):
    path = saved(tmp_path / "m")
    config = json.loads((tmp_path / "m/config.json").read_text())
    (tmp_path / "m/config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    left_out = checked(path)
    assert len(left_out) == 9
    assert all(name.startswith("model.layers.1.") for name in left_out)


@pytest.mark.parametrize("uri", [False, True])
@pytest.mark.parametrize(
    ("size", "line"),
    [
        (-1, "is truncated or damaged"),
        (100, "is truncated or damaged"),
        (5, "is not a safetensors"),
    ],
)
def test_truncated_files_are_rejected(tmp_path, size, line, uri):
    path = saved(tmp_path / "m", shards=True)
    shard = sorted((tmp_path / "m").glob("*.safetensors"))[-1]
    shard.write_bytes(shard.read_bytes()[:size])
    with pytest.raises(UserError, match=rf"{shard.name} .*{line}.*copy it again"):
        check_files((tmp_path / "m").as_uri() if uri else path)


def test_an_html_page_in_place_of_weights_is_rejected(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"<!DOCTYPE html>" + b" " * 2000)
    with pytest.raises(UserError, match="is not a safetensors file; copy it again"):
        check_files(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", 4) + b"{no}")
    with pytest.raises(UserError, match="has a damaged header"):
        check_files(str(tmp_path))


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "pytorch_model.bin"])
def test_lfs_pointers_are_refused(tmp_path, name):
    (tmp_path / name).write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 134515008\n"
    )
    with pytest.raises(UserError, match=f"{name} is a Git LFS pointer, .*git lfs pull"):
        check_files(str(tmp_path))


def test_missing_shards_are_rejected(tmp_path):
    path = saved(tmp_path / "m", shards=True)
    shard = sorted((tmp_path / "m").glob("*.safetensors"))[-1]
    shard.unlink()
    with pytest.raises(UserError, match=rf"lacks {shard.name} of \d+ files"):
        check_files(path)


def test_shards_without_an_index_are_refused(tmp_path):
    path = saved(tmp_path / "m", shards=True)
    (tmp_path / "m/model.safetensors.index.json").unlink()
    with pytest.raises(UserError, match=r"neither model\.safetensors nor"):
        check_files(path)


def test_an_index_with_tensors_in_no_shard_is_rejected(tmp_path):
    path = saved(tmp_path / "m", shards=True)
    file = tmp_path / "m/model.safetensors.index.json"
    index = json.loads(file.read_text())
    index["weight_map"]["model.more"] = next(iter(index["weight_map"].values()))
    file.write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"names tensors that no file contains: model\.more"):
        check_files(path)


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "fp8", "mxfp4"])
def test_quantised_bases_are_refused_by_their_configuration(tmp_path, method):
    path = saved(tmp_path / "m")
    file = tmp_path / "m/config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"quantization_config": {"quant_method": method}}))
    with pytest.raises(UserError, match=rf"is quantised \(quant_method {method}\)"):
        check_config(path, load_config(path))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("model.layers.0.mlp.up_proj.qweight", torch.int32),
        ("model.layers.0.mlp.up_proj.weight", torch.float8_e4m3fn),
    ],
)
def test_quantised_bases_are_refused_by_their_tensors(tmp_path, name, dtype):
    from safetensors.torch import save_file

    save_file({name: torch.zeros(2, 2, dtype=dtype)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=rf"is quantised \({name} is "):
        check_files(str(tmp_path))


def test_a_tokenizer_larger_than_the_model_is_refused():
    check_vocabulary("base", 10, range(11), 10)  # the new end-of-turn token gets a row
    check_vocabulary("base", 64, range(11), 10)
    with pytest.raises(UserError, match="10 embeddings but its tokenizer's ids reach 11"):
        check_vocabulary("base", 10, range(12), 11)
    with pytest.raises(UserError, match="ids reach 10; is this tokenizer the model's own"):
        check_vocabulary("base", 10, range(11), 3)


@pytest.mark.parametrize("shards", [[1], None, {"a": 1}, {"a": ["x"]}])
def test_a_damaged_index_is_one_clear_line(shards, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(UserError, match=r"not a weight index|lacks 1 of 1 files|lacks \['x'\]"):
        check_files(str(tmp_path))


@pytest.mark.parametrize("changes", [{"hidden_size": 10**30}, {"hidden_act": "nope"}])
def test_a_configuration_without_a_model_is_one_clear_line(changes):
    with pytest.raises(UserError, match="transformers cannot create a model from"):
        check_tensors("base", {}, LlamaConfig(**SIZES | changes))


def test_integers_in_place_of_weights_are_refused(tmp_path):
    path = saved(tmp_path / "m")
    tensors = check_files(path)
    integers = tensors | {UP: replace(tensors[UP], dtype="I8")}
    with pytest.raises(UserError, match=rf"quantised \({UP} is I8\)"):
        check_tensors(path, integers, load_config(path))


def test_float64_is_not_quantised(tmp_path):
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES)).double()
    model.save_pretrained(tmp_path)
    assert checked(str(tmp_path)) == []
