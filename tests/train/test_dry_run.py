"""`jobs/train.py --dry-run`: figures computed by hand, the text of a pack, and real runs."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, BloomConfig

from ochat_ray.errors import UserError
from ochat_ray.schema import Turn
from ochat_ray.tokenization.template import encode
from ochat_ray.train.config import TrainConfig
from ochat_ray.train.dry_run import (
    attention_figures,
    coloured_pack,
    describe,
    dry_run,
    escaped,
    figures,
)
from ochat_ray.train.flops import ModelShape
from ochat_ray.train.memory import MemoryPlan
from ochat_ray.train.probe import AttentionMode

SHAPE = ModelShape(
    layers=1,
    hidden=10,
    heads=1,
    kv_heads=1,
    head_size=10,
    intermediate=20,
    gated=True,
    vocabulary=7,
    parameters=50,
    matmul_parameters=40,  # attention costs as much as the rest at 40 / 10 = 4 tokens
    tied=False,
)
GIB = 2**30
MEMORY = MemoryPlan(
    weights=1 * GIB,
    gradients=2 * GIB,
    optimizer=6 * GIB,
    communication=4 * GIB,
    activations=3 * GIB,
    logits=1 * GIB,
    update=2 * GIB,
    host=0,
)


# Two ranks: 4 and 3 + 1, then 2 and nothing.
EPOCH = [[[[0]], [[1, 3]]], [[[2]], [[]]]]
MODE = AttentionMode(
    attention="sdpa",
    packed=False,
    because="they see each other",
    logits_error=0.0,
    gradient_error=0.0,
)


def result(device_bytes=20 * GIB, mode=MODE):
    r = figures(
        replace(TrainConfig(), num_workers=2, max_tokens=5, warmup_ratio=0.25),
        lengths=np.array([4, 3, 2, 1]),
        epoch=EPOCH,
        steps_per_epoch=[2, 2, 1],
        schedule_from=0,
        shape=SHAPE,
        memory_of=lambda tokens: replace(MEMORY, logits=tokens * GIB // 5),
        device_bytes=device_bytes,
    )
    return r | {"attention": attention_figures(mode, EPOCH), "deepspeed": {}, "pack": ""}


def test_steps_and_packs_by_hand():
    r = result()
    assert r["steps"] == 5
    assert r["warmup_steps"] == 2  # a quarter of 5, rounded up
    assert r["epoch"] == {
        "conversations": 4,
        "tokens": 10,
        "longest": 4,
        "flops": 6 * 40 * 10 + 6 * 10 * (16 + 9 + 4 + 1),
    }
    assert r["packing"]["packs"] == 4
    assert r["packing"]["efficiency"] == 10 / 20
    # A conversation of n costs n (1 + n / 4): 8 against 5.25 + 1.25, then 3 against 0.
    assert r["packing"]["balance"] == pytest.approx((8 + 6.5 + 3) / (2 * (8 + 3)))
    assert r["packing"]["packs_per_rank_and_step"] == {"least": 1, "mean": 1.0, "most": 1}


def test_memory_and_whether_it_fits():
    memory = result()["memory"]
    assert memory["total"] == 17 * GIB  # 1 + 2 + 6, and the larger of 4 + 3 + 1 and 2
    assert memory["fits"] is True
    assert result(device_bytes=18 * GIB)["memory"]["fits"] is False
    assert result(device_bytes=None)["memory"]["fits"] is None


def test_the_result_is_json():
    r = result()
    assert json.loads(json.dumps(r)) == r


def test_the_text_for_a_terminal():
    page = describe(result())
    assert "optimizer steps           5, of which 2 warm up; 1 to 2 per epoch, 3 epochs" in page
    assert "packs per epoch           4, 50.0% full" in page
    assert "Memory per device: an estimate, which no GPU has confirmed" in page
    assert "fits in 20.00 GiB" in page
    assert "does NOT fit in 10.00 GiB" in describe(result(device_bytes=10 * GIB))
    assert "is not known" in describe(result(device_bytes=None))


def test_unpacked_models_have_a_forward_pass_per_conversation():
    r = result()
    # Step 1: one conversation against two; step 2: one against none.
    assert r["attention"]["forward_passes"] == 2 + 1
    assert "forward passes per epoch  3 per worker, one per conversation" in describe(r)
    assert "reason for this mode      they see each other" in describe(r)
    together = result(mode=replace(MODE, packed=True, because=""))
    assert together["attention"]["forward_passes"] == 1 + 1
    assert "2 per worker, one per pack" in describe(together)


@pytest.fixture(scope="module")
def pack(tokenizer):
    """Two conversations; in the second the user types a special token and an escape sequence."""
    one = encode(
        [Turn(role="user", text="hi"), Turn(role="assistant", text="hello\nthere 🙂")],
        "openchat",
        tokenizer,
    )
    two = encode(
        [
            Turn(role="user", text="<|end_of_turn|>\x1b[31mred"),
            Turn(role="assistant", text="\x9b no"),
        ],
        "openchat",
        tokenizer,
    )
    return [one, two]


def test_a_pack_without_colour(pack, tokenizer):
    first, second = coloured_pack(pack, tokenizer, colour=False).split("── conversation 2")
    assert first.split("\n", 1)[1] == (
        "⟪<s>⟫Human: hi⟪<|end_of_turn|>⟫Assistant: 「hello\nthere 🙂」「⟪<|end_of_turn|>⟫」\n"
    )
    assert second.split("\n", 1)[1] == (
        "⟪<s>⟫Human: <|end_of_turn|>\\x1b[31mred⟪<|end_of_turn|>⟫"
        "Assistant: 「\\x9b no」「⟪<|end_of_turn|>⟫」"
    )


def test_a_pack_in_colour(pack, tokenizer):
    text = coloured_pack(pack, tokenizer, colour=True)
    assert "\x1b[32mhello\x1b[0m\n\x1b[32mthere 🙂\x1b[0m" in text  # supervised, line by line
    assert "\x1b[2mHuman: hi\x1b[0m" in text
    assert "\x1b[32m\x1b[7m<|end_of_turn|>\x1b[0m" in text
    assert "\x1b[31m" not in text
    assert "\x9b" not in text


def test_the_title_of_a_conversation_counts_tokens(pack, tokenizer):
    ids, weights = pack[0]
    line = coloured_pack(pack, tokenizer, colour=False).splitlines()[0]
    assert line == (
        f"── conversation 1 of 2 · {len(ids)} tokens, {int(sum(weights))} supervised ──"
    )


def test_characters_that_control_a_terminal_are_escaped():
    assert escaped("a\x1b]0;title\x07\r\x00\x7f\x85") == "a\\x1b]0;title\\x07\\r\\x00\\x7f\\x85"
    assert escaped("\u202eevil\u2066\u200b\u2028") == "\\u202eevil\\u2066\\u200b\\u2028"
    assert escaped("tab\tline\n 👩\u200d👧 你好 naïve") == "tab\tline\n 👩\u200d👧 你好 naïve"


def test_a_sentencepiece_decoder_keeps_the_blanks_between_runs():
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"▁Human": 0, ":": 1, "▁": 2, "▁yes": 3}, unk_token=":"))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    llama_like = PreTrainedTokenizerFast(tokenizer_object=backend)
    text = coloured_pack(
        [(np.array([0, 1, 2, 3]), np.array([0.0, 0.0, 0.0, 1.0]))], llama_like, colour=False
    )
    assert text.split("\n", 1)[1] == "Human: 「 yes」"


ROOT = Path(__file__).parents[2]


def config(data, model_directory, tmp_path, **changes):
    values = {
        "recipe": "demo", "data": data, "model": str(model_directory), "num_workers": 2,
        "output": str(tmp_path / "model"), "epochs": 3, "sequences_per_step": 8, "max_tokens": 128,
        "dry_run": True,
    }  # fmt: skip
    return TrainConfig(**values | changes)


def test_the_plan_has_the_steps_and_packs_of_the_training(data, model_directory, tmp_path):
    result = dry_run(config(data, model_directory, tmp_path), colour=False)
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
    assert dry_run(small, colour=False)["memory"]["fits"] is False
    memory = dry_run(large, colour=False)["memory"]
    assert memory["fits"] is True
    assert memory["longest_pack"] > 128


def test_the_plan_of_a_quantized_base_counts_its_weights_as_half_a_byte(
    data, model_directory, tmp_path
):
    plain, quantized = (
        dry_run(config(data, model_directory, tmp_path, lora=lora), colour=False)
        for lora in ("r=4", "r=4,quantize=nf4")
    )
    assert "quantized" not in describe(plain)
    text = describe(quantized)
    assert "quantized parameters      73,728" in text
    assert "loading" in text
    # 73,728 weights of 2 bytes are partitioned, or of 1/2 byte and with the scales.
    saved = plain["memory"]["weights"] - quantized["memory"]["weights"]
    assert saved == pytest.approx(73_728 * (2 - 0.5) / 2 - 73_728 / 64 - 73_728 / 4096, abs=4)


def test_a_conversation_longer_than_a_pack_is_one_clear_line(data, model_directory, tmp_path):
    with pytest.raises(UserError, match=r"has \d+ tokens but a pack holds 8; give --max-tokens"):
        dry_run(config(data, model_directory, tmp_path, max_tokens=8), colour=False)


def test_an_unpacked_base_is_planned_and_reported(data, tokenizer, tmp_path, capsys):
    bloom = BloomConfig(
        vocab_size=len(tokenizer), hidden_size=32, n_layer=2, n_head=4, eos_token_id=299
    )
    AutoModelForCausalLM.from_config(bloom).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    result = dry_run(config(data, tmp_path / "base", tmp_path), colour=False)
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
        dry_run(config(data, base, tmp_path), colour=False)


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
