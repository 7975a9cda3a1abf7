"""Shards of a model's tensors, as transformers names and reads them."""

import json

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ochat_ray.run_dir import RunDir
from ochat_ray.train import export
from ochat_ray.train.export import publish


def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(torch.bfloat16)


def write(directory):
    directory.mkdir()
    original = model()
    original.config.save_pretrained(directory)
    writer = export._ShardWriter(directory)
    for name, parameter in original.named_parameters():
        writer.add(name, parameter.detach())
    writer.finish()
    export._check_complete(original, writer.where)
    return original


def test_one_shard_has_no_index(tmp_path):
    write(tmp_path / "m")
    assert (tmp_path / "m/model.safetensors").exists()
    assert not (tmp_path / "m/model.safetensors.index.json").exists()


def test_shards_are_indexed_and_open_to_the_same_tensors(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "SHARD_BYTES", 10_000)
    original = write(tmp_path / "m")
    index = json.loads((tmp_path / "m/model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    opened = LlamaForCausalLM.from_pretrained(tmp_path / "m")
    for name, tensor in original.state_dict().items():
        assert torch.equal(opened.state_dict()[name], tensor)


def test_publishing_twice_leaves_the_files_once(tmp_path):
    write(tmp_path / "m")
    run = RunDir.open(str(tmp_path / "out"))
    publish(tmp_path / "m", run)
    publish(tmp_path / "m", run)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
