"""Exports from real DeepSpeed engines: two workers, partitioned parameters, padded vocabulary."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from benchmarks.export_families import byte_level_tokenizer, tiny_config
from ochat_ray.cluster.local_cluster import free_port

pytestmark = pytest.mark.timeout(600)

PROCESS = Path(__file__).with_name("export_process.py")
CASES = {
    "Phi, ZeRO-2": ("Phi", {"zero_stage": 2, "dtype": "float32"}),
    "Mixtral, ZeRO-3": ("Mixtral", {"zero_stage": 3, "dtype": "float32"}),
    "DeepSeek V3, ZeRO-3": ("DeepSeek V3", {"zero_stage": 3, "dtype": "float32"}),
    "Llama, tied, ZeRO-3 in bfloat16": ("Llama, tied", {"zero_stage": 3, "dtype": "bfloat16"}),
}


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """Differences of logits by the case's name, and the folder with a directory of each."""
    folder = tmp_path_factory.mktemp("exports")
    tokenizer, cases = byte_level_tokenizer(), {}
    for number, (name, (family, config)) in enumerate(CASES.items()):
        base = folder / f"base-{number}"
        model_config = tiny_config(family)
        model_config.get_text_config().vocab_size = 320
        AutoModelForCausalLM.from_config(model_config).save_pretrained(base)
        tokenizer.save_pretrained(base)
        export = folder / f"export-{number}"
        export.mkdir()
        cases[name] = {"base": str(base), "export": str(export), "config": config}
    (folder / "task.json").write_text(json.dumps({"port": free_port(), "cases": cases}))
    running = [
        subprocess.Popen(
            [sys.executable, PROCESS, str(rank), "2", folder],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate()[0] for process in running]
    codes = [process.returncode for process in running]
    assert codes == [0, 0], f"{codes}\n" + "\n".join(outputs)[-6000:]
    return json.loads((folder / "result.json").read_text()), folder


def test_the_export_of_each_engine_computes_the_engines_logits(exports):
    """In float32 to five digits, since the engine's weights are rounded to the written ones."""
    differences, _ = exports
    assert differences.keys() == CASES.keys()
    assert all(d < (0.1 if "bfloat16" in name else 1e-4) for name, d in differences.items())


@pytest.mark.parametrize(
    ("number", "name", "shape"),
    [
        (0, "lm_head.bias", [287]),
        (1, "model.layers.0.block_sparse_moe.experts.3.w2.weight", [64, 96]),
        (2, "model.layers.1.mlp.gate.e_score_correction_bias", [4]),
        (3, "model.embed_tokens.weight", [287, 64]),
    ],
)
def test_partitioned_tensors_are_written_whole_and_without_padding(exports, number, name, shape):
    with safe_open(exports[1] / f"export-{number}/model.safetensors", framework="pt") as file:
        assert list(file.get_slice(name).get_shape()) == shape
