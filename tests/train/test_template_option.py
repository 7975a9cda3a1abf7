"""`--recipe chat --template openchat|opencoder|FILE.jinja`: from chats to the server's prompts."""

import json
from pathlib import Path

import pyarrow.ipc
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.serve.asking import ask
from tests.serve.script import Script, app_for

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

OWN = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
FILE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}> {{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant> {% endif %}"
)
SYSTEM = {"role": "system", "content": "Be brief. "}


def chats():
    for n in range(24):
        question = {"role": "user", "content": f" How long is <|end_of_turn|> {n}<s>?\n"}
        again = {"role": "user", "content": "And back<|im_end|>?"}
        answers = [
            {"role": "assistant", "content": f" {n} days. <|im_start|>"},
            {"role": "assistant", "content": "As long."},
        ]
        system = [SYSTEM] if n % 3 == 0 else []
        yield {"id": f"c{n}", "messages": [*system, question, answers[0], again, answers[1]]}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny base with a chat template of its own, BOS, and no <|end_of_turn|>."""
    alphabet = {c: n for n, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(alphabet, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<s>", "<|im_start|>", "<|im_end|>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="<|im_end|>", chat_template=OWN
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=4096,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    directory = tmp_path_factory.mktemp("base") / "base-model"
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.mark.parametrize("template", ["opencoder", "openchat", "FILE.jinja"])
def test_prompts_of_the_server_are_those_of_the_training(shared_ray, base, template, tmp_path):
    from ochat_ray import api
    from ochat_ray.serve.args import ServeArgs, resolve
    from ochat_ray.serve.served_model import open_served_tokenizer

    shared_ray()
    records = {chat["id"]: chat["messages"] for chat in chats()}
    lines = (json.dumps({"id": id, "messages": turns}) + "\n" for id, turns in records.items())
    (tmp_path / "chats.jsonl").write_text("".join(lines))
    (tmp_path / "FILE.jinja").write_text(FILE)
    chosen = str(tmp_path / template) if template == "FILE.jinja" else template
    data, model = str(tmp_path / "data"), str(tmp_path / "model")
    counts = api.prepare(
        recipe="chat", input=tmp_path / "chats.jsonl", tokenizer=base, template=chosen, output=data
    )["counts"]
    assert counts["kept"] == 24
    result = api.train(
        recipe="chat", data=data, model=base, output=model, max_steps=2, num_workers=1,
        sequences_per_step=4, dtype="float32", learning_rate=1e-2, sample_every=None,
    )  # fmt: skip
    assert result["eval_after"]["loss"] < result["eval_before"]["loss"]

    settings = resolve(ServeArgs.model_validate({"model": model}))
    expected = "chat" if template == "FILE.jinja" else template
    assert settings.ingress.model_type == expected
    tokenizer = open_served_tokenizer(Path(model))
    app = app_for(tokenizer, Script(tokenizer), model_type=expected)
    rows = [row for path in Path(data).glob("tokens/*/*.arrow") for row in read(path)]
    assert len(rows) == 24
    for row in rows:
        weights, turns = row["loss_weights"], records[row["id"]]
        starts = [n for n, weight in enumerate(weights) if weight and not weights[n - 1]]
        answers = [n for n, turn in enumerate(turns) if turn["role"] == "assistant"]
        for start, place in zip(starts, answers, strict=True):
            prompt = ask(app, path="/tokenize", json={"messages": turns[:place]}).json()["tokens"]
            assert row["input_ids"][:start] == prompt
            assert not any(weights[:start]) or place > answers[0]
    (end,) = {row["input_ids"][len(row["input_ids"]) - 1] for row in rows}
    generation = json.loads(Path(model, "generation_config.json").read_text())
    assert generation["eos_token_id"] in (end, [end])
    name = "<|im_end|>" if template == "FILE.jinja" else "<|end_of_turn|>"
    assert tokenizer.convert_ids_to_tokens(end) == name


def read(path):
    with pyarrow.ipc.open_file(path) as file:
        return file.read_all().to_pylist()
