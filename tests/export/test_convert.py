"""Export to GGUF with a converter in the place of llama.cpp's, which needs no torch."""

import json
import re

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from ochat_ray.export import convert
from ochat_ray.jobs import export as job

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONVERTER = """
import json, sys
from pathlib import Path
from gguf import GGUFWriter

directory, file = Path(sys.argv[1]), sys.argv[sys.argv.index("--outfile") + 1]
found = json.loads((directory / "tokenizer.json").read_text())
tokens = {id: t for t, id in found["model"]["vocab"].items()}
special = {t["id"]: t["content"] for t in found["added_tokens"]}
tokens |= special
writer = GGUFWriter(file, "llama")
writer.add_tokenizer_model("gpt2")
writer.add_token_list([tokens[id] for id in sorted(tokens)])
writer.add_token_types([3 if id in special else 1 for id in sorted(tokens)])
writer.add_token_merges([" ".join(pair) for pair in found["model"]["merges"]])
writer.add_eos_token_id(END)
writer.add_chat_template((directory / "chat_template.jinja").read_text())
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
"""


@pytest.fixture
def model(tmp_path):
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: id for id, token in enumerate([*alphabet, "he"])}
    backend = Tokenizer(models.BPE(vocabulary, [("h", "e")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    directory = tmp_path / "model"
    PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", chat_template=CHATML
    ).save_pretrained(directory)
    (directory / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (directory / "model.safetensors").touch()
    return directory


@pytest.fixture(autouse=True)
def without_llama_cpp(monkeypatch):
    monkeypatch.setattr(convert, "is_installed", lambda: False)
    monkeypatch.setenv("PATH", "")


def converter(folder, source=CONVERTER, *, end=258):
    folder.mkdir(exist_ok=True)
    (folder / "convert_hf_to_gguf.py").write_text(source.replace("END", str(end)))
    return str(folder)


def export(model, *arguments, capsys):
    status = job.main([str(model), *arguments])
    return status, capsys.readouterr()


def test_a_model_is_converted_and_has_a_modelfile(model, tmp_path, capsys):
    status, shown = export(model, "--converter", converter(tmp_path / "c"), "--json", capsys=capsys)
    assert status == 0
    result = json.loads(shown.out.splitlines()[-1])
    assert result["file"] == f"{model}-gguf/model.gguf"
    assert result["prompts"] is None
    assert "prompt ids not checked, since xllamacpp is not installed" in shown.out
    output = tmp_path / "model-gguf"
    assert {p.name for p in output.iterdir()} == {".run", "model.gguf", "Modelfile"}
    assert 'FROM ./model.gguf\nPARAMETER stop "<|im_end|>"' in (output / "Modelfile").read_text()
    assert export(model, "--converter", str(tmp_path / "c"), capsys=capsys)[0] == 0  # replaces it


def test_a_file_that_would_not_stop_is_not_published(model, tmp_path, capsys):
    status, shown = export(model, "--converter", converter(tmp_path / "c", end=256), capsys=capsys)
    assert status == 2
    assert "none of its end tokens (eos 256, eot None) is the end of turn, 258" in shown.err
    assert {p.name for p in (tmp_path / "model-gguf").iterdir()} == {".run"}


def test_other_prompt_ids_in_llama_cpp_are_refused(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(convert, "is_installed", lambda: True)
    monkeypatch.setattr(convert, "prompt_ids", lambda file, asked: [[1, 2, 3] for _ in asked])
    status, shown = export(model, "--converter", converter(tmp_path / "c"), capsys=capsys)
    assert status == 2
    assert re.search(r"llama.cpp reads 3 tokens where the model was trained with \d+", shown.err)
    assert not (tmp_path / "model-gguf/model.gguf").exists()


def test_a_file_of_somebody_else_is_not_overwritten(model, tmp_path, capsys):
    (tmp_path / "model-gguf").mkdir()
    (tmp_path / "model-gguf/model.gguf").write_text("mine")
    status, shown = export(model, "--converter", converter(tmp_path / "c"), capsys=capsys)
    assert status == 2
    assert "was not written by a run of export" in shown.err
    assert (tmp_path / "model-gguf/model.gguf").read_text() == "mine"


@pytest.mark.parametrize(
    ("prepare", "arguments", "expected"),
    [
        (None, [], "convert_hf_to_gguf.py is not on PATH; run `git clone --depth 1 "),
        (None, ["--converter", "/nowhere"], "--converter /nowhere: there is no file /nowhere"),
        ("adapter_config.json", ["--converter", "C"], "train it with --merge to export it"),
        ("-tokenizer.json", ["--converter", "C"], "is not a model directory: it has no tokenizer"),
        ("-model.safetensors", ["--converter", "C"], "it has no *.safetensors"),
        (None, ["--converter", "C", "--output", "s3://b/x"], "must be a local directory"),
        (None, ["--converter", "FAILS"], "cannot convert"),
    ],
)
def test_what_is_missing_is_one_line(model, tmp_path, capsys, prepare, arguments, expected):
    if prepare and prepare.startswith("-"):
        (model / prepare[1:]).unlink()
    elif prepare:
        (model / prepare).write_text("{}")
    places = {
        "C": converter(tmp_path / "c"),
        "FAILS": converter(tmp_path / "fails", "raise SystemExit('no such architecture')"),
    }
    status, shown = export(model, *(places.get(a, a) for a in arguments), capsys=capsys)
    assert status == 2
    assert expected in shown.err
    assert len(shown.err.strip().splitlines()) == 1
    assert "no such architecture" in shown.err or "FAILS" not in arguments


def test_without_a_model_the_line_names_one(capsys):
    assert job.main([]) == 2
    assert "give a model directory, such as runs/chat/model" in capsys.readouterr().err
