"""`jobs/train.py --dry-run`."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, BloomConfig

from ochat_ray.errors import UserError
from ochat_ray.train.config import TrainConfig
from ochat_ray.train.dry_run import describe
from ochat_ray.train.planned import planned

ROOT = Path(__file__).parents[2]


def config(data, model_directory, tmp_path, **changes):
    values = {
        "recipe": "demo", "data": data, "model": str(model_directory), "num_workers": 2,
        "output": str(tmp_path / "model"), "epochs": 3, "sequences_per_step": 8, "max_tokens": 128,
        "dry_run": True,
    }  # fmt: skip
    return TrainConfig(**values | changes)


def test_the_plan_has_the_steps_and_packs_of_the_training(data, model_directory, tmp_path):
    result = planned(config(data, model_directory, tmp_path), colour=False)
    assert result["steps_per_epoch"] == [3, 3, 3]  # 20 conversations, 8 per step
    assert result["warmup_steps"] == 1
    assert result["epoch"]["conversations"] == 20
    # Embeddings in and out, two layers of four attention and three feed-forward matrices, norms.
    hidden = 64
    layer = 2 * hidden * hidden + 2 * hidden * 32 + 3 * hidden * 128 + 2 * hidden
    counted = result["model"]["parameters"] - 2 * layer - hidden
    assert counted == 2 * 301 * hidden  # 300 and the end-of-turn token
    assert result["memory"]["fits"] is None
    assert "「fine" in result["pack"]
    assert not (tmp_path / "model").exists()


def test_the_plan_reports_whether_it_fits_a_given_gpu(data, model_directory, tmp_path):
    small = config(data, model_directory, tmp_path, gpu_memory_gib=0.001)
    large = config(data, model_directory, tmp_path, gpu_memory_gib=80.0)
    assert planned(small, colour=False)["memory"]["fits"] is False
    memory = planned(large, colour=False)["memory"]
    assert memory["fits"] is True
    assert memory["longest_pack"] > 128


def test_the_plan_of_a_quantized_base_counts_its_weights_as_half_a_byte(
    data, model_directory, tmp_path
):
    plain = planned(config(data, model_directory, tmp_path, lora="r=4"), colour=False)
    assert "quantized" not in describe(plain)
    quantized = planned(
        config(data, model_directory, tmp_path, lora="r=4,quantize=nf4"), colour=False
    )
    text = describe(quantized)
    assert "quantized parameters      73,728" in text
    assert "loading" in text
    # 73,728 weights of 2 bytes are partitioned, or of 1/2 byte and with the scales.
    saved = plain["memory"]["weights"] - quantized["memory"]["weights"]
    assert saved == pytest.approx(73_728 * (2 - 0.5) / 2 - 73_728 / 64 - 73_728 / 4096, abs=4)


def test_a_conversation_longer_than_a_pack_is_one_clear_line(data, model_directory, tmp_path):
    with pytest.raises(UserError, match=r"has \d+ tokens but a pack holds 8; give --max-tokens"):
        planned(config(data, model_directory, tmp_path, max_tokens=8), colour=False)


def test_an_unpacked_base_is_planned_and_reported(data, tokenizer, tmp_path, capsys):
    bloom = BloomConfig(
        vocab_size=len(tokenizer), hidden_size=32, n_layer=2, n_head=4, eos_token_id=299
    )
    AutoModelForCausalLM.from_config(bloom).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    result = planned(config(data, tmp_path / "base", tmp_path), colour=False)
    assert "the attention of a Bloom model takes no packs; each" in capsys.readouterr().err
    attention = result["attention"]
    assert (attention["attention"], attention["packed"]) == ("eager", False)
    # 8, 8 and 4 conversations per step, which two workers share.
    assert 10 <= attention["forward_passes"] <= 20
    assert "per worker, one per conversation" in describe(result)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"quantization_config": {"quant_method": "gptq"}}, "is quantised"),
        ({"num_hidden_layers": 3}, "lack model.layers.2."),
        ({"vocab_size": 100}, "100 embeddings but its tokenizer's ids reach"),
        ({"model_type": "t5"}, "not a causal language model"),
    ],
)
def test_a_base_that_cannot_train_is_one_clear_line(data, model_directory, tmp_path, changes, line):
    base = tmp_path / "base"
    shutil.copytree(model_directory, base)
    written = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(written | changes))
    with pytest.raises(UserError, match=line):
        planned(config(data, base, tmp_path), colour=False)


def test_the_job_prints_a_page_and_json_and_starts_no_ray(data, model_directory, tmp_path):
    command = [
        *(sys.executable, "jobs/train.py", "--dry-run", "--json", "--data", data),
        *("--model", str(model_directory), "--output", str(tmp_path / "model")),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    page, last = done.stdout.rsplit("\n", 2)[:2]
    for title in (
        "optimizer steps",
        "Memory per device",
        '"zero_optimization"',
        "conversation 1 of",
    ):
        assert title in page
    assert json.loads(last)["world_size"] == 2
    assert not list(tmp_path.iterdir())
