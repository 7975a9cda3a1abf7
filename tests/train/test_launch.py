"""The complete training job: a real Ray, two ZeRO-3 workers, a tiny random Llama."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ochat_ray.errors import UserError
from ochat_ray.run_dir import RunDir, read_manifest
from ochat_ray.run_lock import hold
from ochat_ray.tokenization.template import encode
from ochat_ray.tokenization.tokenizer import (
    END_OF_TURN,
    end_of_turn_id,
    load_tokenizer,
    tokenizer_digest,
)
from ochat_ray.train.batch import make_batch, weighted_nll
from ochat_ray.train.forward import logits
from ochat_ray.train.launch import train
from ochat_ray.train.loop import train_worker
from ochat_ray.train.tokens import TokenTable
from tests.token_tables import write_data
from tests.train.runs import STEPS, metrics_of, steps_of

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


def held_out_loss(directory, data):
    """Return the loss of one process, one conversation at a time, in float32."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    table, nll, weight = TokenTable(data, "eval"), 0.0, 0.0
    with torch.no_grad():
        for index in range(len(table.lengths)):
            batch = make_batch([table.row(index)])
            nll += weighted_nll(logits(model, batch), batch).item()
            weight += batch.weights.sum().item()
    return nll / weight


def test_the_held_out_loss_falls(undisturbed):
    _, result = undisturbed
    assert result["eval_after"]["loss"] < result["eval_before"]["loss"] - 0.5


def test_the_loss_before_training_equals_that_of_one_process(undisturbed, data, model_directory):
    _, result = undisturbed
    expected = held_out_loss(model_directory, data)
    assert result["eval_before"]["loss"] == pytest.approx(expected, rel=1e-5)


def test_the_exported_model_is_the_one_that_was_evaluated(undisturbed, data):
    config, result = undisturbed
    exported = held_out_loss(config.output, data)
    # bfloat16 weights: three digits.
    assert exported == pytest.approx(result["eval_after"]["loss"], rel=2e-2)
    assert result["export_difference"] < 1e-4  # in float32, of the rounded weights


def test_the_output_is_a_plain_hugging_face_directory(undisturbed, data):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config, result = undisturbed
    model = AutoModelForCausalLM.from_pretrained(config.output)
    tokenizer = AutoTokenizer.from_pretrained(config.output)
    assert model.dtype == torch.bfloat16
    assert tokenizer.eos_token == END_OF_TURN
    written = json.loads(Path(config.output, "config.json").read_text())
    assert written["rope_theta"] == written["rope_parameters"]["rope_theta"]
    assert written["torch_dtype"] == "bfloat16"
    assert model.generation_config.eos_token_id == end_of_turn_id(tokenizer)
    assert "Human: " in tokenizer.chat_template
    assert RunDir.open(config.output).read_json("ochat.json") == result
    assert result["world_size"] == 2
    assert result["data_digest"] == read_manifest(data)["digest"]
    assert result["data_digest"] in Path(config.output, "README.md").read_text()


def test_metrics_have_one_line_per_step_and_one_evaluation_per_epoch(undisturbed):
    config, _ = undisturbed
    lines = metrics_of(config.output)
    assert [m["step"] for m in steps_of(lines)] == list(range(1, STEPS + 1))
    # 20 conversations are six steps of 3 and one of 2.
    assert [m["conversations"] for m in steps_of(lines)] == [3, 3, 3, 3, 3, 3, 2] * 6
    assert [m["step"] for m in lines if "eval_loss" in m] == list(range(0, STEPS + 1, 7))


def test_a_complete_model_is_not_trained_again_nor_lost(undisturbed):
    config, result = undisturbed
    assert train(config) == result
    with pytest.raises(UserError, match="another configuration"):
        train(replace(config, seed=1))


def test_a_contradicting_deepspeed_file_is_rejected_before_anything_starts(configured, tmp_path):
    (tmp_path / "ds.json").write_text('{"gradient_clipping": 0.5}')
    with pytest.raises(UserError, match="set by --max-grad-norm"):
        train(configured(tmp_path / "m", deepspeed=str(tmp_path / "ds.json")))
    assert not (tmp_path / "m").exists()


def test_neither_the_base_nor_files_that_no_training_wrote_are_deleted(
    configured, model_directory, tmp_path
):
    base, other = tmp_path / "base", tmp_path / "other"
    shutil.copytree(model_directory, base)
    shutil.copytree(model_directory, other)
    before = sorted((path.name, path.stat().st_mtime_ns) for path in base.iterdir())
    (tmp_path / "link").symlink_to(base)
    for overwrite in (False, True):
        for output in (base, tmp_path / "link", base / "tuned", tmp_path):
            with pytest.raises(UserError, match="the same place, or one lies in the other"):
                train(configured(output, model=str(base), overwrite=overwrite))
        with pytest.raises(UserError, match="was not written by a run of train"):
            train(configured(base, model=str(other), overwrite=overwrite))
    assert sorted((path.name, path.stat().st_mtime_ns) for path in base.iterdir()) == before


def test_a_second_training_with_the_same_output_is_rejected_in_one_line(configured, undisturbed):
    config, result = undisturbed
    with hold(RunDir.open(config.output), "train"):
        assert train(config) == result  # complete: nothing to write
        with pytest.raises(UserError, match=r"in use by train on .* choose another --output"):
            train(replace(config, seed=1, overwrite=True))
    assert RunDir.open(config.output).read_json("ochat.json") == result


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(configured, tmp_path):
    wild = configured(tmp_path / "m", learning_rate=1e30, warmup_ratio=0.0, num_workers=1)
    with pytest.raises(Exception, match=r"step [23]: loss .* conversations \d\d, \d\d"):
        train(wild)
    assert not (tmp_path / "m/ochat.json").exists()


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"tokenizer": "another"}, "was tokenised with another tokenizer"),
        ({"model_type": "opencoder"}, "prepared with the template opencoder"),
        ({"tokens": {"train": {"rows": 0}, "eval": {"rows": 1}}}, "train split .* is empty"),
        ({"digest": "0" * 64}, "does not agree with its manifest"),
    ],
)
def test_data_that_does_not_fit_is_one_clear_line(
    configured, model_directory, tmp_path, tokenizer, changes, line
):
    digest = tokenizer_digest(load_tokenizer(str(model_directory)))
    data = write_data(tmp_path / "data", tokenizer, digest, changes)
    with pytest.raises(UserError, match=line):
        train(configured(tmp_path / "model", data=data))


def test_a_worker_without_the_output_directory_reports_it(tmp_path):
    settings = {"config": {"output": str(tmp_path / "out")}, "staging": str(tmp_path / "staging")}
    with pytest.raises(UserError, match=r"out does not exist on .*s3://"):
        train_worker(settings)
    assert not any(tmp_path.iterdir())


def test_more_workers_than_the_cluster_has_is_one_clear_line(configured, tmp_path):
    with pytest.raises(UserError, match="4 workers need a CPU each, the cluster has 3"):
        train(configured(tmp_path / "model", num_workers=4))


def test_gpt_big_code_gets_its_token_trains_and_loads(configured, tmp_path, tokenizer, monkeypatch):
    """Tied embeddings, learned positions, no end-of-turn token in the base, no BOS.

    Beside it: a --deepspeed file is found from where the job was started, though workers run in
    directories of their own.
    """
    from tokenizers import Tokenizer
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        GPTBigCodeConfig,
        GPTBigCodeForCausalLM,
        PreTrainedTokenizerFast,
    )

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] != END_OF_TURN]
    base = tmp_path / "base"
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)), bos_token="<s>"
    ).save_pretrained(base)
    torch.manual_seed(0)
    rows = end_of_turn_id(tokenizer)
    model = GPTBigCodeForCausalLM(
        GPTBigCodeConfig(vocab_size=rows, n_embd=32, n_layer=2, n_head=2, n_positions=128)
    )
    model.save_pretrained(base)
    with_token = load_tokenizer(str(base))
    data = write_data(
        tmp_path / "data", with_token, tokenizer_digest(with_token), model_type="opencoder"
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"sub_group_size": 12345}}')
    result = train(
        configured(
            tmp_path / "model", recipe="opencoder", data=data, model=str(base), max_steps=2,
            learning_rate=1e-12, deepspeed="ds.json", num_workers=1,
        )
    )  # fmt: skip
    assert result["deepspeed"]["zero_optimization"]["sub_group_size"] == 12345
    assert result["eval_after"]["loss"] == pytest.approx(result["eval_before"]["loss"])
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    exported = opened.transformer.wte.weight
    assert exported.shape == (rows + 1, 32)
    assert opened.lm_head.weight is exported
    old = model.transformer.wte.weight.detach()
    assert torch.equal(exported[:rows], old.bfloat16().float())
    # Steps with a rate of almost 0: the new row is still the exact mean in bfloat16.
    assert torch.equal(exported[rows], old.double().mean(0).float().bfloat16().float())
    messages = [{"role": "user", "content": " def f():\n  <|end_of_turn|>"}]
    ids = AutoTokenizer.from_pretrained(tmp_path / "model").apply_chat_template(
        messages,
        chat_template=Path(tmp_path, "model", "exact_chat_template.jinja").read_text(),
        add_generation_prompt=True,
        return_dict=False,
    )
    turns = [{"role": "user", "text": messages[0]["content"]}]
    assert ids == encode(turns, "opencoder", with_token, add_generation_prompt=True)[0]
