"""A training of adapters on Ray Train: the held-out loss falls, and the output is an adapter."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from ochat_ray.errors import UserError
from tests.train.runs import kill_a_worker, metrics_of, steps_of

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


def test_adapters_lower_the_held_out_loss_and_are_merged_later(shared_ray, configured, tmp_path):
    from ochat_ray.train.launch import train

    shared_ray()
    output = tmp_path / "model"
    config = configured(output, lora="r=4", epochs=2, learning_rate=1e-2, zero_stage=3)
    before_kill = []

    def past_the_checkpoint():  # of step 7
        steps = steps_of(metrics_of(output))
        before_kill[:] = [(m["step"], m["loss"]) for m in steps]
        return len(steps) >= 9

    killer = kill_a_worker(past_the_checkpoint)
    result = train(config)
    assert not killer.is_alive()
    # The steps after the checkpoint were computed twice, and the adapters are the same.
    again = [(m["step"], m["loss"]) for m in steps_of(metrics_of(output))]
    assert [step for step, _ in again] == list(range(1, 15))
    assert again[: len(before_kill)] == [
        (step, pytest.approx(loss, abs=1e-5)) for step, loss in before_kill
    ]
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


def test_a_quantized_base_trains_with_one_worker_continues_with_two_and_is_merged(
    shared_ray, configured, tmp_path
):
    from ochat_ray.train.launch import train

    shared_ray()
    output = tmp_path / "model"
    options = {"lora": "r=4,quantize=nf4", "learning_rate": 1e-2}
    config = configured(output, **options, num_workers=1, zero_stage=2, epochs=1)
    first = train(config)
    assert first["identity"]["lora"] == "r=4,alpha=8,targets=all-linear,quantize=nf4"
    assert first["eval_after"]["loss"] < first["eval_before"]["loss"] - 0.2
    # The same adapter on the quantized base, and on the base as it is.
    assert first["export_difference"] < 1e-3 < first["adapter"]["unquantized_difference"]
    card = (output / "README.md").read_text()
    assert "- base in training: `quantized to NF4 by bitsandbytes" in card
    assert "- difference of logits on the unquantized base: `" in card

    more = replace(config, epochs=2, from_checkpoint="latest")
    with pytest.raises(UserError, match=r"--lora r=4,.*quantize=nf4, not r=4,.*all-linear;"):
        train(replace(more, lora="r=4"))
    result = train(replace(more, num_workers=2, zero_stage=3))
    assert (result["step"], result["world_size"]) == (14, 2)
    assert result["eval_before"] == first["eval_before"]
    assert result["eval_after"]["loss"] < first["eval_after"]["loss"]

    merged = train(replace(more, merge=True))
    assert merged["eval_after"]["loss"] == pytest.approx(result["eval_after"]["loss"], rel=1e-4)
    assert 0 < merged["export_difference"] < 3e-2
    assert merged["merged_adapter"]["difference"] == merged["export_difference"]
    assert "merged into the dequantized weights" in (output / "README.md").read_text()
