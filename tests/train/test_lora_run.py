"""A training of adapters on Ray Train: the held-out loss falls, and the output is an adapter."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from ochat_ray.errors import UserError

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


def test_adapters_lower_the_held_out_loss_and_are_merged_later(shared_ray, configured, tmp_path):
    from ochat_ray.train.launch import train

    shared_ray()
    output = tmp_path / "model"
    config = configured(output, lora="r=4", epochs=2, learning_rate=1e-2, zero_stage=3)
    result = train(config)
    assert result["eval_after"]["loss"] < result["eval_before"]["loss"] - 0.5
    assert result["export_difference"] < 1e-3
    assert result["adapter"]["base_model"] == config.model
    assert result["identity"]["lora"] == "r=4,alpha=8,targets=all-linear"
    written = {path.name for path in output.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= written
    assert not {"config.json", "model.safetensors"} & written
    settings = json.loads((output / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == config.model

    tuned = AutoModelForCausalLM.from_pretrained(output)  # with peft, on the base that it names
    ids = torch.arange(40)[None]
    with torch.no_grad():
        logits = tuned(ids).logits

    with pytest.raises(UserError, match="--overwrite"):
        train(replace(config, merge=True))
    # Only the export is computed: with ZeRO-2 and one worker, from the checkpoint's shards of two.
    merged = train(
        replace(config, merge=True, from_checkpoint="latest", num_workers=1, zero_stage=2)
    )
    assert merged["step"] == result["step"]
    assert "adapter" not in merged
    assert merged["merged_adapter"]["difference"] < 2e-2
    assert merged["eval_after"]["loss"] == pytest.approx(result["eval_after"]["loss"], rel=1e-4)
    assert not list(Path(output).glob("adapter*"))
    with torch.no_grad():
        again = AutoModelForCausalLM.from_pretrained(output, dtype=torch.float32)(ids).logits
    assert (again - logits).norm() < 6e-2 * logits.norm()  # the merged weights are in bfloat16
