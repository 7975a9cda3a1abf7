"""Runs that end later than planned, or earlier: real trainings."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ochat_ray.errors import UserError
from ochat_ray.train.launch import train
from tests.train.runs import STEPS, metrics_of, steps_of

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


def test_a_complete_run_gets_another_epoch_with_its_own_schedule(undisturbed, tmp_path):
    config, before = undisturbed
    output = tmp_path / "model"
    shutil.copytree(config.output, output)
    longer = replace(
        config, output=str(output), epochs=7, schedule="linear", warmup_ratio=0.0, num_workers=1
    )
    with pytest.raises(UserError, match="continue it with --from-checkpoint latest"):
        train(longer)
    longer = replace(longer, from_checkpoint="latest", sample_every=4, sample_tokens=4)
    with pytest.raises(UserError, match=r"step 42, but the run has 21 steps; give more --epochs"):
        train(replace(longer, epochs=3))
    result = train(longer)
    assert (result["step"], result["stopped_early"]) == (STEPS + 7, False)
    assert result["identity"]["continues"] == {
        "step": STEPS,
        "before": {"epochs": 6, "schedule": "cosine", "warmup_ratio": 0.03},
    }
    assert result["eval_before"] == before["eval_before"]
    lines = steps_of(metrics_of(output))
    assert [line["step"] for line in lines] == list(range(1, STEPS + 8))
    rates = [line["learning_rate"] for line in lines[STEPS:]]
    assert rates == pytest.approx([1e-3 * (1 - n / 8) for n in range(1, 8)])
    samples = [json.loads(line) for line in (output / "samples.jsonl").read_text().splitlines()]
    # Two of the four held-out prompts are short enough for a pack of 128 tokens.
    assert [s["step"] for s in samples] == [44, 44, 48, 48, 49, 49]
    assert "This run wrote no samples" in (Path(config.output) / "report.html").read_text()
    report = (output / "report.html").read_text()
    assert f"after step {STEPS + 7}" in report
    assert "--from-checkpoint" in report
    assert train(longer) == result  # complete already


def test_a_run_whose_loss_no_longer_decreases_ends_early_and_is_complete(
    configured, model_directory, tmp_path
):
    """Its learning rate is too small to change a weight; a part of the model is also frozen."""
    from transformers import AutoModelForCausalLM

    result = train(
        configured(
            tmp_path / "m",
            learning_rate=1e-15,
            early_stopping=1,
            freeze=("embed", "layers.0"),
            num_workers=1,
        )
    )
    assert (result["step"], result["stopped_early"]) == (7, True)
    assert result["best"] == {"step": 7, "eval_loss": result["eval_after"]["loss"]}
    base = AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.bfloat16)
    exported = AutoModelForCausalLM.from_pretrained(Path(tmp_path, "m"))
    for name, weight in base.state_dict().items():
        assert torch.equal(exported.state_dict()[name], weight), name
