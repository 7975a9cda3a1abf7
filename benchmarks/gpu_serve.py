"""Serving speed of one GPU, for the bare engine and behind the endpoint.

    python benchmarks/gpu_serve.py                         a random model of TinyLlama's shape
    python benchmarks/gpu_serve.py --model DIR --engine vllm
    python benchmarks/gpu_serve.py --smoke                 a tiny model on the CPU, end to end

Runs benchmarks/serve_speed.py with one GPU per replica: the bare engine and, if Ray can be
imported, the endpoint. Weights are random, which does not affect the speed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
             "num_key_value_heads": 2, "intermediate_size": 128},
    "1b": {"hidden_size": 2048, "num_hidden_layers": 22, "num_attention_heads": 32,
           "num_key_value_heads": 4, "intermediate_size": 5632},
}  # fmt: skip
VOCABULARY = 32_000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="a directory that serving would take")
    parser.add_argument("--engine", default="transformers", choices=["transformers", "vllm"])
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 16, 32])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()

    import torch

    if not arguments.smoke and not torch.cuda.is_available():
        parser.exit(2, "there is no GPU here; --smoke tries this script on the CPU\n")
    ray = importlib.util.find_spec("ray") is not None
    contenders = ["bare", "endpoint", "endpoint+throughput"] if ray else ["bare"]
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model or random_model(Path(folder), "tiny" if arguments.smoke else "1b")
        command = [
            sys.executable, str(Path(__file__).with_name("serve_speed.py")), "--model", model,
            "--engine", arguments.engine, "--rounds", str(arguments.rounds),
            "--gpus", "0" if arguments.smoke else "0.4", "--contenders", *contenders,
            "--streams", *map(str, arguments.streams),
        ]  # fmt: skip
        device = "CPU" if arguments.smoke else torch.cuda.get_device_name()
        print(f"{arguments.engine} on {device}" + ("" if ray else "; Ray is not here"))
        sys.exit(subprocess.run(command, check=False).returncode)


def random_model(folder: Path, shape: str) -> str:
    """Create a Llama of that shape with random weights and a byte tokenizer; return its folder."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    fillers = [f"<{number}>" for number in range(VOCABULARY - len(letters) - 2)]
    vocabulary = {token: index for index, token in enumerate(["<s>", *letters, *fillers])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "<|end_of_turn|>"])
    special: dict[str, Any] = {"bos_token": "<s>", "eos_token": "<|end_of_turn|>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    fields: dict[str, Any] = {"vocab_size": VOCABULARY, "max_position_embeddings": 2048}
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(LlamaConfig(**fields, **SHAPES[shape]))
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "ochat.json").write_text(json.dumps({"model_type": "openchat"}))
    return str(folder)


if __name__ == "__main__":
    main()
