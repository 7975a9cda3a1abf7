"""Prompt ids of exported models with their own chat templates, in other programs.

    make venv-exports && .venv/bin/python benchmarks/chat_exports.py [--only qwen3]

For each base a tiny model with the base's real tokenizer and template is exported as after
training. The ids of several conversations, with the generation prompt, are compared: those of our
server; of this environment's transformers; of version 4; and of llama.cpp, which applies the
template of the converted GGUF file itself. Where a person typed the name of a special token, other
programs read the token and our server text: those conversations have a column of their own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import platformdirs
from chat_templates import npm

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENTS = ROOT / ".venv-exports"
ASK = Path(__file__).with_name("ask_export.py")
BASES = {"qwen3": 151936, "qwen2_5": 152064, "llama3_2": 128256, "mistral_nemo": 131072,
         "gemma3": 262208}  # fmt: skip
"""Package with the tokenizer, and rows of the embedding."""

CONVERSATIONS = [
    [("user", "Hello, how are you?")],
    [("user", "  two\n\n\nlines\t"), ("assistant", "Yes.\n"), ("user", "é 你好 🙂👍🏽 नमस्ते")],
    [("user", "def f(x):\n    return x  # done\n"), ("assistant", "ok"), ("user", "12345 67")],
    [("user", "a" * 300), ("assistant", "<b>no</b> &amp;"), ("user", "\\( x^2 \\)")],
]
HOSTILE = [[("user", "<|im_end|> <|eot_id|> </s> <end_of_turn> [/INST] <think> <|user|>")]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=BASES)
    arguments = parser.parse_args()
    cache = Path(platformdirs.user_cache_path("ochat_ray")) / "chat_templates"
    versions = sorted(p.name for p in ENVIRONMENTS.glob("transformers-4.*"))
    columns = ["transformers here", *versions, "llama.cpp"]
    print(f"| base | {' | '.join(columns)} | typed names |\n|---|{'---|' * (len(columns) + 1)}")
    for base, rows in BASES.items():
        if arguments.only in (None, base):
            with tempfile.TemporaryDirectory() as folder:
                cells = compared(npm(cache, base), rows, Path(folder), versions)
            print(f"| {base} | {' | '.join(cells)} |", flush=True)


def compared(source: Path, rows: int, folder: Path, versions: list[str]) -> list[str]:
    tokenizer = export(source, rows, folder)
    ours = [ids_of(tokenizer, turns) for turns in CONVERSATIONS + HOSTILE]
    asked = json.dumps([messages(turns) for turns in CONVERSATIONS + HOSTILE])
    pythons = [Path(sys.executable), *(ENVIRONMENTS / v / "bin/python" for v in versions)]
    found = [ask(python, "transformers", folder, asked) for python in pythons]
    found.append(ask(pythons[-1], "llama.cpp", folder, asked) if versions else "not there")
    cells = [cell(ours[: len(CONVERSATIONS)], one) for one in found]
    hostile = [one[-1] == ours[-1] for one in found if isinstance(one, list)]
    return [*cells, f"equal in {sum(hostile)} of {len(hostile)}"]


def cell(ours: list[list[int]], theirs: list[list[int]] | str) -> str:
    if isinstance(theirs, str):
        return theirs
    equal = sum(a == b for a, b in zip(ours, theirs, strict=False))
    return "equal" if equal == len(ours) else f"{equal} of {len(ours)} equal"


def export(source: Path, rows: int, folder: Path) -> Any:
    """Write a tiny model as training does, and return our tokenizer of it."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from ochat_ray.models.base_model import generation_config
    from ochat_ray.recipes import CHAT
    from ochat_ray.tokenization.chat_tokenizer import load_chat_tokenizer
    from ochat_ray.tokenization.exported_tokenizer import export_tokenizer

    tokenizer = load_chat_tokenizer(str(source))
    config = LlamaConfig(
        vocab_size=rows, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    generation_config(tokenizer, model.generation_config).save_pretrained(folder)
    export_tokenizer(tokenizer, CHAT).save_pretrained(folder)
    return load_chat_tokenizer(str(folder))


def ids_of(tokenizer: Any, turns: list[tuple[str, str]]) -> list[int]:
    from ochat_ray.recipes import CHAT
    from ochat_ray.tokenization.template import encode

    texts = [{"role": role, "text": text} for role, text in turns]
    return encode(texts, CHAT, tokenizer, add_generation_prompt=True)[0]


def messages(turns: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in turns]


def ask(python: Path, program: str, folder: Path, asked: str) -> list[list[int]] | str:
    done = subprocess.run(
        [python, ASK, program, folder], input=asked, capture_output=True, text=True
    )
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["no output"])[-1][:80]
    ids: list[list[int]] = json.loads(done.stdout.strip().splitlines()[-1])
    return ids


if __name__ == "__main__":
    main()
