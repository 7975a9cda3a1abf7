"""docs/your-own-model.md and its notebook: every command parses, and the walk works."""

from __future__ import annotations

import inspect
import json
import os
import re
import shlex
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from ochat_ray import api
from ochat_ray.command_line import parse
from ochat_ray.data.advice import _OPTIONS
from ochat_ray.data.config import PrepareConfig
from ochat_ray.evaluate.config import EvaluateConfig
from ochat_ray.export.config import ExportConfig
from ochat_ray.tokenization.supervision import NOTES
from ochat_ray.train.config import TrainConfig
from tests.test_installed import installed, wheel  # noqa: F401

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/your-own-model.md").read_text()
COMMANDS = [line[4:] for line in PAGE.splitlines() if line.startswith("    ochat-ray ")]
(CURL,) = (line[4:] for line in PAGE.splitlines() if line.startswith("    curl "))
RECORDS = [json.loads(text) for text in re.findall("```json\n(.*?)\n```", PAGE, re.DOTALL)]
NOTEBOOK = ROOT / "examples/your_own_model.ipynb"
PARSERS = {
    "prepare": PrepareConfig.for_recipe,
    "train": TrainConfig.for_recipe,
    "evaluate": lambda _recipe: EvaluateConfig(),
}


def test_there_are_four_commands_with_at_most_three_options():
    assert [shlex.split(command)[1] for command in COMMANDS] == [
        "prepare",
        "train",
        "serve",
        "evaluate",
    ]
    for command in COMMANDS:
        options = [word for word in shlex.split(command)[2:] if word.startswith("-") or "=" in word]
        assert len(options) <= 3


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_parses(command):
    _, stage, *arguments = shlex.split(command)
    if stage == "serve":
        from ochat_ray.serve import ServeArgs

        ServeArgs.model_validate(dict(argument.split("=") for argument in arguments))
        return
    config = parse(PARSERS[stage], arguments, stage)
    if stage == "evaluate":
        config = replace(config, model=("chat",)).with_output()  # the only one that is served
    config.check()


def test_every_option_on_the_page_exists():
    known = {"--recipe", "--dry-run", "--json", "--input"}
    known |= {"--depth", "--exclude", "--jinja"}  # of git, hf and llama-server
    known |= {f"--{name}" for name in vars(ExportConfig(model=""))}
    for parser in PARSERS.values():
        known |= {f"--{name.replace('_', '-')}" for name in vars(parser("chat"))}
    assert set(re.findall(r"--[a-z][a-z-]+", PAGE)) <= known


def test_every_reason_on_the_page_has_the_option_that_prepare_names():
    table = re.findall(r"^\| `(\w+)`.*\| `(--[a-z-]+)", PAGE, re.MULTILINE)
    assert len(table) == 4
    for reason, option in table:
        assert option in next(text for known, text in _OPTIONS.items() if known == reason)


def test_every_note_on_a_template_is_documented():
    page = (ROOT / "docs/data-format.md").read_text()
    for name, meaning in NOTES.items():
        assert f"| `{name}` | {meaning} |" in page


def test_the_notebook_is_source_alone_and_calls_the_functions_as_they_are():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] for cell in cells if cell["cell_type"] == "code")
    assert not re.search(r"/(?:home|root|work|Users)/", NOTEBOOK.read_text())
    seen = {}

    class Stages:
        def __getattr__(self, stage):
            def call(**options):
                seen.setdefault(stage, []).append(options)
                return {"counts": {}, "steps": 1, "memory": {"total": 1}, "url": "u", "model": "m",
                        "eval_before": {"loss": 1}, "eval_after": {"loss": 1}}  # fmt: skip

            return call

    names = {"api": Stages()}
    for source in sources:
        if "httpx" not in source:
            exec(source.replace("from ochat_ray import api", ""), names)
    assert set(seen) == {"prepare", "train", "serve", "evaluate"}
    for stage, parser in PARSERS.items():
        for options in seen[stage]:
            api.configured(stage, parser, options)


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_inputs(folder):
    """A tiny base model with a chat template, 60 chats in OpenAI's format, and two held out."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = {c: n for n, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(alphabet, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", chat_template=CHATML
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=4096,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "base-model")
    tokenizer.save_pretrained(folder / "base-model")
    chat, held_out = RECORDS
    chats = [
        {"messages": [{**turn, "content": f"{turn['content']} ({n})"} for turn in chat["messages"]]}
        for n in range(60)
    ]
    (folder / "chats.jsonl").write_text("\n".join(map(json.dumps, [*chats, chats[0]])))
    (folder / "held_out.jsonl").write_text("\n".join(map(json.dumps, [held_out, chats[0]])))


@pytest.mark.slow
def test_the_walk_from_a_wheel(installed, tmp_path):  # noqa: F811
    from ochat_ray.cluster.local_cluster import SERVE_PORT, need_free_ports
    from ochat_ray.errors import UserError

    try:
        need_free_ports([SERVE_PORT])
    except UserError as error:
        pytest.skip(str(error))
    write_inputs(tmp_path)
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment["RAY_ADDRESS"] = "local"  # not the Ray of another test
    environment["PATH"] = f"{installed}{os.pathsep}{environment['PATH']}"

    def run(command):
        done = subprocess.run(
            shlex.split(command), cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    prepare, train, serve, evaluate = COMMANDS
    out = run(prepare)
    assert out.startswith("read 61 · kept 60\n")
    assert "dropped: duplicate 1" in out
    loss = re.match(r"held-out loss ([\d.]+) -> ([\d.]+)", run(train))
    assert float(loss[2]) < float(loss[1])
    assert "base_model: base-model\n" in (tmp_path / "runs/chat/model/README.md").read_text()
    with (tmp_path / "serve.log").open("w") as log:
        server = subprocess.Popen(
            shlex.split(serve), cwd=tmp_path, env=environment, stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + 180
        while not _answers():
            assert server.poll() is None, (tmp_path / "serve.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(1)
        reply = json.loads(run(CURL))
        assert reply["model"] == "chat"
        assert reply["choices"][0]["message"]["role"] == "assistant"
        chat, base, *_ = run(evaluate).splitlines()
        for name, line in (("chat", chat), ("base-model", base)):
            assert re.match(rf"{name}: [\d.]+ .*% of answers that match the reference", line)
        answers = (tmp_path / "runs/chat/evaluation/answers.jsonl").read_text()
        assert len(answers.splitlines()) == 4
    finally:
        server.terminate()
        server.wait(timeout=60)


def _answers():
    try:
        return httpx.get("http://127.0.0.1:8000/health", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


def test_the_page_s_python_has_the_functions_arguments():
    (source,) = re.findall("```python\n(.*?)```", PAGE, re.DOTALL)
    for stage in (*PARSERS, "serve"):
        assert f"api.{stage}(" in source
        assert inspect.isfunction(getattr(api, stage))
