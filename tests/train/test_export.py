"""Exports of tiny models: loading in transformers, and rejection before publishing."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from benchmarks.export_families import export_tiny, one_process_group, tiny_config
from ochat_ray.errors import UserError
from ochat_ray.run_dir import RunDir
from ochat_ray.train import export, round_trip
from ochat_ray.train.batch import make_batch
from ochat_ray.train.export import publish
from ochat_ray.train.round_trip import check_export, relative_difference
from tests.tiny_models import SIZES


@pytest.fixture(scope="module", autouse=True)
def process_group(tmp_path_factory):
    with one_process_group(tmp_path_factory.mktemp("store")):
        yield


def exported(family, directory, **changes):
    """Names, shapes and dtypes of the tensors in the files of a family's tiny model."""
    config = tiny_config(family)
    for name, value in changes.items():
        setattr(config, name, value)
    directory.mkdir()
    export_tiny(config, directory)
    with safe_open(directory / "model.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def reference(directory):
    """The conversation and the logits of the model that was exported."""
    saved = np.load(directory / "reference.npz")
    ids = saved["ids"][0]
    pack = make_batch([(ids, np.ones(len(ids), np.float32))])
    return pack, torch.from_numpy(saved["logits"])[pack.label_positions]


@pytest.mark.parametrize(
    ("family", "hub"),
    [
        ("Phi", {"lm_head.bias": (287,), "lm_head.weight": (287, 64)}),
        ("GPT-J", {"lm_head.bias": (287,), "transformer.wte.weight": (287, 64)}),
        ("DeepSeek V3", {"model.layers.1.mlp.gate.e_score_correction_bias": (4,),
                         "model.layers.1.mlp.experts.3.up_proj.weight": (32, 64)}),
        ("Mixtral", {"model.layers.1.block_sparse_moe.experts.3.w1.weight": (96, 64)}),
        ("GPT-NeoX", {"embed_out.weight": (287, 64)}),
        ("Llama", {"lm_head.weight": (287, 64), "model.embed_tokens.weight": (287, 64)}),
        ("Llama, dynamic", {}),
        ("Llama, YaRN", {}),
    ],
)  # fmt: skip
def test_an_export_has_the_hub_s_names_and_the_same_logits(family, hub, tmp_path):
    """287 tokens: the model that is exported has 320 rows of a vocabulary."""
    written = exported(family, tmp_path / "m")
    assert hub == {name: tuple(written[name].shape) for name in hub}
    pack, expected = reference(tmp_path / "m")
    difference = check_export(tmp_path / "m", pack, expected, torch.float32)
    assert difference < 1e-4


def test_tied_embeddings_are_written_once(tmp_path):
    assert "lm_head.weight" not in exported("Llama, tied", tmp_path / "m")


def test_what_transformers_keeps_in_float32_is_written_in_float32(tmp_path):
    written = exported("DeepSeek V3", tmp_path / "m")
    in_float32 = {name for name, tensor in written.items() if tensor.dtype == torch.float32}
    assert in_float32 == {"model.layers.1.mlp.gate.e_score_correction_bias"}


def test_a_model_that_computes_other_logits_is_rejected(tmp_path):
    """A rotary base of 10,000 where the model was trained with 50,000."""
    exported("Llama", tmp_path / "m")
    path = tmp_path / "m/config.json"
    config = json.loads(path.read_text())
    config["rope_parameters"]["rope_theta"] = 10_000.0
    path.write_text(json.dumps(config))
    pack, expected = reference(tmp_path / "m")
    with pytest.raises(UserError, match=r"logits differ by \d+\.\d% .* not published"):
        check_export(tmp_path / "m", pack, expected, torch.float32)


@pytest.mark.parametrize("memory", [1 << 40, 0])
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda tensors: tensors.pop("model.norm.weight"), r"missing keys: model\.norm\.weight"),
        (lambda tensors: tensors.update(x=torch.ones(1)), "unexpected keys: x"),
        (lambda tensors: tensors.update({"model.norm.weight": torch.ones(3)}), "norm.weight|size"),
    ],
)
def test_an_export_that_cannot_be_loaded_is_rejected(
    change, problem, memory, tmp_path, monkeypatch
):
    """With weights, and, where memory is too small for them, by names and shapes."""
    exported("Llama", tmp_path / "m")
    tensors = load_file(tmp_path / "m/model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "m/model.safetensors", metadata={"format": "pt"})
    available = type("Memory", (), {"available": memory})
    monkeypatch.setattr(round_trip.psutil, "virtual_memory", lambda: available)
    pack, expected = reference(tmp_path / "m")
    with pytest.raises(UserError, match=rf"cannot be loaded, and is not published.*{problem}"):
        check_export(tmp_path / "m", pack, expected, torch.float32)


def test_without_memory_an_export_is_checked_by_names_and_shapes(tmp_path, monkeypatch):
    exported("Llama", tmp_path / "m")
    none = type("Memory", (), {"available": 0})
    monkeypatch.setattr(round_trip.psutil, "virtual_memory", lambda: none)
    assert check_export(tmp_path / "m", *reference(tmp_path / "m"), torch.float32) is None


def test_a_constant_added_to_all_logits_is_no_difference():
    expected = torch.tensor([[1.0, 2.0, 3.0]])
    assert relative_difference(expected + 5, expected) == pytest.approx(0, abs=1e-6)
    # (1, 0, -1) against (-1, 0, 1): the difference is twice as long.
    assert relative_difference(expected.flip(1), expected) == pytest.approx(2)
    assert relative_difference(torch.ones(1, 2), expected) == float("inf")


def test_embeddings_that_the_base_ties_only_by_name_are_both_written(tmp_path):
    config = LlamaConfig(**SIZES | {"vocab_size": 40}, tie_word_embeddings=True)
    model = LlamaForCausalLM(config)
    model.lm_head.weight = torch.nn.Parameter(torch.randn(40, 32))
    tokenizer = type("T", (), {"get_vocab": lambda _: {"x": 39}, "chat_template": None})
    tokenizer.get_added_vocab = lambda _: {"<|end_of_turn|>": 39}
    result = export.exported_config(model, tokenizer())
    assert result.tie_word_embeddings is False
    assert "lm_head.weight" in export.ExportedState(model, result).names


def test_a_tensor_of_the_vocabulary_s_size_that_was_not_resized_is_rejected(tmp_path):
    original = model()
    config = original.config
    original.model.layers[0].self_attn.q_proj = torch.nn.Linear(32, 40, bias=False)
    with pytest.raises(UserError, match=r"type llama cannot .*q_proj\.weight is not that of .* 40"):
        export.ExportedState(original, config)


def model():
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES | {"vocab_size": 40}, tie_word_embeddings=True)
    return LlamaForCausalLM(config).to(torch.bfloat16)


def write(directory):
    directory.mkdir()
    original = model()
    original.config.save_pretrained(directory)
    parameters = dict(original.named_parameters())
    writer = export._ShardWriter(directory, export.split_into_files(parameters))
    for name, parameter in parameters.items():
        writer.add(name, parameter.detach())
    writer.finish()
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


def test_the_published_model_opens(tmp_path):
    exported("Mixtral", tmp_path / "m")
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    publish(tmp_path / "m", RunDir.open(str(tmp_path / "out")))
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.bfloat16
