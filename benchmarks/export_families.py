"""Export a tiny model of each family and open it elsewhere, with equal logits.

    make venv-exports && .venv/bin/python benchmarks/export_families.py [FAMILY...]

Each model has random weights, a vocabulary padded as training pads it, and is exported as after
training. It is opened by this environment's transformers, by those of version 4 in
.venv-exports/transformers-4.*, and, converted to GGUF, by llama.cpp in the newest of these. Printed
is a table: "equal", or what is different. An environment that is not there is left out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENTS = ROOT / ".venv-exports"
OPENER, CONVERTER = (Path(__file__).with_name(f"{n}_export.py") for n in ("open", "convert"))

TOLERANCE = 3e-3
"""Largest relative difference of logits that is called equal. In float32 transformers' are below
1e-5; llama.cpp's are about 4e-4, since it computes some functions in float16."""

_KNOWN_PROBLEMS = {
    "unknown to it": "does not recognize",
    "no converter": "SystemExit: 1",
    "needs a tokenizer.model": "tokenizer.model",
    "needs its own vocabulary": "Cannot find Llama BPE tokenizer",
    "needs its own tokens": "KeyError: '",
    "the converter refuses it": "AssertionError: ",
    "llama.cpp cannot load it": "Failed to init server",
}
"""Lines printed for an error that is no fault of the export."""

_COMMON = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
_LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}
_SLIDING = {"num_hidden_layers": 6, "sliding_window": 16}


def _rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 50_000.0, **more}}


FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("llama", _rope("default")),
    "Llama, tied": ("llama", {"tie_word_embeddings": True} | _rope("default")),
    "Llama, linear": ("llama", _rope("linear", factor=2.0)),
    "Llama, dynamic": ("llama", _rope("dynamic", factor=2.0)),
    "Llama, YaRN": (
        "llama",
        _rope("yarn", factor=2.0, original_max_position_embeddings=128),
    ),
    "Llama 3": (
        "llama",
        _rope(
            "llama3", factor=4.0, original_max_position_embeddings=64,
            low_freq_factor=1.0, high_freq_factor=4.0,
        ),
    ),
    "Mistral": ("mistral", {"sliding_window": None}),
    "Mistral, window": ("mistral", {"sliding_window": 16}),
    "Mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "Qwen 2": ("qwen2", _rope("default")),
    "Qwen 2 MoE": (
        "qwen2_moe",
        _EXPERTS | {"num_experts": 4, "shared_expert_intermediate_size": 32},
    ),
    "Qwen 3": ("qwen3", {"head_dim": 16}),
    "Qwen 3 MoE": (
        "qwen3_moe",
        _EXPERTS | {"num_experts": 4, "head_dim": 16, "norm_topk_prob": True},
    ),
    "Gemma": ("gemma", {"head_dim": 16}),
    "Gemma 2": ("gemma2", {"head_dim": 16, "sliding_window": 16}),
    "Gemma 3": ("gemma3_text", {"head_dim": 16, "query_pre_attn_scalar": 16} | _SLIDING),
    "Phi": ("phi", {"num_key_value_heads": 4, "intermediate_size": 256}),
    "Phi 3": ("phi3", {"pad_token_id": 0}),
    "Phi MoE": ("phimoe", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "GPT-2": ("gpt2", {"n_ctx": 256}),
    "GPTBigCode": ("gpt_bigcode", {}),
    "GPT-J": ("gptj", {"rotary_dim": 8, "n_inner": 96}),
    "GPT-Neo": (
        "gpt_neo",
        {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
    ),
    "GPT-NeoX": ("gpt_neox", {}),
    "CodeGen": ("codegen", {"rotary_dim": 8}),
    "BLOOM": ("bloom", {"n_head": 4}),
    "MPT": ("mpt", {"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 256}),
    "OPT": ("opt", {"ffn_dim": 96, "word_embed_proj_dim": 64}),
    "Falcon": ("falcon", {"new_decoder_architecture": False, "multi_query": True}),
    "Falcon, new": (
        "falcon",
        {"new_decoder_architecture": True, "num_kv_heads": 2, "alibi": False},
    ),
    "StarCoder 2": ("starcoder2", {}),
    "StableLM": ("stablelm", {}),
    "Persimmon": ("persimmon", {}),
    "Nemotron": ("nemotron", {"head_dim": 16}),
    "OLMo": ("olmo", {}),
    "OLMo 2": ("olmo2", {}),
    "OLMo 3": ("olmo3", _SLIDING),
    "OLMoE": (
        "olmoe", {"num_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 4}
    ),
    "Cohere": ("cohere", {}),
    "Cohere 2": (
        "cohere2", {"num_hidden_layers": 4, "sliding_window": 16, "rotary_pct": 1.0}
    ),
    "Granite": ("granite", {}),
    "Granite MoE": ("granitemoe", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "Granite hybrid": (
        "granitemoehybrid",
        {
            "num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 32,
            "layer_types": ["linear_attention", "full_attention"],
            "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1,
        },
    ),
    "GLM": ("glm", {"head_dim": 16, "pad_token_id": 0}),
    "GLM 4": ("glm4", {"head_dim": 16, "pad_token_id": 0}),
    "GLM 4 MoE": (
        "glm4_moe",
        _EXPERTS
        | {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
           "head_dim": 16},
    ),
    "DeepSeek V2": (
        "deepseek_v2", _LATENT | _EXPERTS | {"n_group": 1, "topk_group": 1, "topk_method": "greedy"}
    ),
    "DeepSeek V3": (
        "deepseek_v3",
        _LATENT | _EXPERTS | {"n_group": 2, "topk_group": 1, "scoring_func": "sigmoid"},
    ),
    "gpt-oss": (
        "gpt_oss",
        {
            "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, "sliding_window": 16,
            "pad_token_id": 0,
        }
        | _rope("yarn", factor=4.0, original_max_position_embeddings=64),
    ),
    "SmolLM 3": ("smollm3", {"pad_token_id": 0}),
    "EXAONE 4": (
        "exaone4", {"sliding_window": None, "layer_types": ["full_attention"] * 2}
    ),
    "ERNIE 4.5": ("ernie4_5", {}),
    "Qwen 3 Next": (
        "qwen3_next",
        _EXPERTS
        | {
            "num_experts": 4, "shared_expert_intermediate_size": 32, "head_dim": 16,
            "layer_types": ["linear_attention", "full_attention"],
            "linear_num_key_heads": 2, "linear_num_value_heads": 4,
            "linear_key_head_dim": 16, "linear_value_head_dim": 16,
        },
    ),
    "Jamba": (
        "jamba",
        {
            "num_experts": 4, "attn_layer_period": 2, "attn_layer_offset": 1,
            "expert_layer_period": 2, "expert_layer_offset": 1, "mamba_d_state": 8,
            "use_mamba_kernels": False,
        },
    ),
    "Falcon H1": (
        "falcon_h1",
        {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_ssm": 64, "mamba_d_state": 16,
         "mamba_n_groups": 1, "head_dim": 16},
    ),
    "Mamba": ("mamba", {"state_size": 8, "intermediate_size": 128}),
    "Falcon Mamba": ("falcon_mamba", {"state_size": 8, "intermediate_size": 128}),
    "LFM 2": ("lfm2", {"layer_types": ["conv", "full_attention"], "block_multiple_of": 16}),
}  # fmt: skip
"""A model type of transformers and how its tiny configuration differs from `_COMMON`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalEngine:
    """Substitute for the engine that `export` takes, around an unpartitioned model."""

    model: Any

    def gathered(self, parameter: Any, *, changes: bool = False) -> Any:  # noqa: ARG002
        """See `Engine.whole`."""
        return contextlib.nullcontext()


def byte_level_tokenizer() -> Any:
    """Return a byte-level tokenizer with a few merges, <s>, </s> and the end-of-turn token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(["Human: hello there", "Assistant: how are you?"], trainer)
    backend.add_special_tokens(["<|end_of_turn|>"])
    names = dict(zip(("bos_token", "eos_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def tiny_config(family: str) -> Any:
    """Return the transformers configuration of a family's tiny model."""
    from transformers import AutoConfig

    model_type, changes = FAMILIES[family]
    config = AutoConfig.for_model(model_type)
    names = {*config.to_dict(), *config.attribute_map}
    common = {key: value for key, value in _COMMON.items() if key in names}
    tokens = {"bos_token_id": 0, "eos_token_id": 1}
    return AutoConfig.for_model(model_type, **common | tokens | changes)


@torch.no_grad()
def export_tiny(config: Any, directory: Path) -> None:
    """Export a random model of a configuration as after training, and its logits beside it."""
    from transformers import AutoModelForCausalLM

    from ochat_ray.models.base_model import VOCABULARY_MULTIPLE
    from ochat_ray.train.export import export
    from ochat_ray.train.round_trip import check_exportable

    tokenizer = byte_level_tokenizer()
    config.get_text_config().vocab_size = len(tokenizer)
    check_exportable(config)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for tensor in model.state_dict().values():
        if tensor.dim() == 1 and tensor.is_floating_point():  # norms and biases, too
            tensor.add_(0.1 * torch.randn_like(tensor))
    model.resize_token_embeddings(
        len(tokenizer), mean_resizing=False, pad_to_multiple_of=VOCABULARY_MULTIPLE
    )
    export(LocalEngine(model=model), tokenizer, directory, "openchat")  # type: ignore[arg-type]
    ids = torch.randint(2, len(tokenizer) - 1, (1, 48))
    logits = model(input_ids=ids, use_cache=False).logits[0, :, : len(tokenizer)]
    np.savez(directory / "reference.npz", ids=ids.numpy(), logits=logits.numpy())


def environments() -> dict[str, tuple[Path, Path]]:
    """Columns of the table: the Python and the script that open an export."""
    found = {"transformers 5": (Path(sys.executable), OPENER)}
    for directory in sorted(ENVIRONMENTS.glob("transformers-4*"), reverse=True):
        found[directory.name.replace("-", " ")] = (directory / "bin/python", OPENER)
    if (ENVIRONMENTS / "llama.cpp").exists() and len(found) > 1:
        newest = list(found)[1]
        found["GGUF"] = (found[newest][0], CONVERTER)
    return found


def opened_by(python: Path, script: Path, directories: list[Path]) -> Iterator[dict[str, Any]]:
    """Return what the script of an environment prints for each export, in their order."""
    command = [python, script, *directories]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    yield from lines
    for _ in directories[len(lines) :]:
        yield {"problem": f"ended with status {done.returncode}"}


def cell(result: dict[str, Any], end_of_turn: int) -> str:
    """One cell of the table."""
    if problem := result.get("problem"):
        short = (text for text, error in _KNOWN_PROBLEMS.items() if error in problem)
        return next(short, str(problem))
    if not result["difference"] < TOLERANCE:
        return f"logits differ by {result['difference']:.1%}"
    if result["eos"] != end_of_turn:
        return f"ends at token {result['eos']}"
    return "equal"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="all, if none is named")
    parser.add_argument("--output", type=Path, help="keep the exports in this directory")
    arguments = parser.parse_args()
    families = arguments.families or list(FAMILIES)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as scratch, one_process_group(Path(scratch)):
        output = arguments.output or Path(scratch)
        rows: dict[str, list[str]] = {}
        directories: dict[str, Path] = {}
        for family in families:
            directory = output / family.lower().replace(" ", "-").replace(",", "")
            directory.mkdir(parents=True, exist_ok=True)
            try:
                export_tiny(tiny_config(family), directory)
                directories[family] = directory
            except Exception as error:  # noqa: BLE001 - a row of the table
                rows[family] = [f"not exported: {type(error).__name__}: {str(error)[:200]}"]
        end_of_turn = len(byte_level_tokenizer()) - 1
        columns = environments()
        for python, script in columns.values():
            results = opened_by(python, script, list(directories.values()))
            for family, result in zip(directories, results, strict=True):
                rows.setdefault(family, []).append(cell(result, end_of_turn))
        print(f"| family | {' | '.join(columns)} |\n|{' --- |' * (1 + len(columns))}")
        for family in families:
            print(f"| {family} | {' | '.join(rows[family])} |")


@contextlib.contextmanager
def one_process_group(scratch: Path) -> Iterator[None]:
    """torch.distributed with this process alone, which `export` asks for its rank."""
    store = f"file://{scratch}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
