"""Greedy answers during training, and the prompts that they answer."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from ochat_ray.errors import UserError
from ochat_ray.recipes import RECIPES
from ochat_ray.run_dir import RunDir
from ochat_ray.train.config import TrainConfig
from ochat_ray.train.forward import logits
from ochat_ray.train.metrics import Metrics
from ochat_ray.train.samples import Sampler, generate, held_out_prompts, prompts_of
from ochat_ray.train.tokens import TokenTable


@pytest.fixture(scope="module")
def model(model_directory):
    from transformers import AutoModelForCausalLM

    made = AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.float32)
    made.config.use_cache = False
    return made.eval()


def greedy(model):
    def next_ids(batch):
        with torch.no_grad():
            return logits(model, batch).argmax(-1).tolist()

    return next_ids


PROMPTS = [[0, 5, 6, 7], [0, 9], [0, 8, 8, 1, 2, 3]]


def test_answers_equal_those_of_transformers_generate(model):
    """All prompts in one pack, without a cache, against one at a time with it."""
    ours = generate(greedy(model), PROMPTS, tokens=12, end_of_turn_id=299)
    apart = generate(greedy(model), PROMPTS, tokens=12, end_of_turn_id=299, packed=False)
    assert apart == ours
    for prompt, answer in zip(PROMPTS, ours, strict=True):
        ids = model.generate(
            torch.tensor([prompt]),
            max_new_tokens=12,
            do_sample=False,
            use_cache=True,
            eos_token_id=299,
            pad_token_id=299,
        )
        assert answer == ids[0, len(prompt) :].tolist()


def test_an_answer_ends_with_its_end_of_turn_token():
    script = iter([[4, 299], [299], [1]])
    answers = generate(lambda _: next(script), PROMPTS[:2], tokens=9, end_of_turn_id=299)
    assert answers == [[4, 299], [299]]


def config(data, model_directory, **changes):
    options = {"sample_every": 2, "sample_tokens": 5, "max_tokens": 256}
    return TrainConfig(data=data, model=str(model_directory), **options | changes)


@pytest.fixture
def prompts_for(tokenizer):
    """Return the prompts of a run with the template openchat."""

    def prompts_for(config):
        held_out = TokenTable(config.data, "eval", config.max_length)
        return prompts_of(config, held_out, "openchat", tokenizer)

    return prompts_for


def test_prompts_are_first_turns_of_held_out_conversations(
    data, model_directory, tokenizer, prompts_for
):
    prompts = prompts_for(config(data, model_directory))
    texts = [tokenizer.decode(ids) for ids in prompts]
    assert len(texts) == 4
    for text in texts:
        assert text.startswith("<s>Human: eval ")
        assert text.endswith("well?<|end_of_turn|>Assistant: ")
    assert prompts_for(config(data, model_directory, sample_every=None)) is None


def test_prompts_of_a_file_are_encoded_as_in_serving(
    data, model_directory, tokenizer, tmp_path, prompts_for
):
    (tmp_path / "p.txt").write_text("hello there\n\n<s>\n")
    chosen = config(data, model_directory, sample_prompts=str(tmp_path / "p.txt"))
    prompts = prompts_for(chosen)
    assert [tokenizer.decode(ids) for ids in prompts] == [
        "<s>Human: hello there<|end_of_turn|>Assistant: ",
        "<s>Human: <s><|end_of_turn|>Assistant: ",
    ]
    assert prompts[1].count(0) == 1  # typed special tokens are text


@pytest.mark.parametrize(
    ("content", "changes", "line"),
    [
        (None, {}, "--sample-prompts: cannot read"),
        ("\n", {}, "has no prompt; give one per line"),
        ("a\nb\n", {"max_tokens": 64, "sample_tokens": 32}, "but a pack holds 64; give fewer"),
    ],
)
def test_invalid_prompts_are_one_clear_line(
    data, model_directory, tmp_path, prompts_for, content, changes, line
):
    path = tmp_path / "p.txt"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=line):
        prompts_for(config(data, model_directory, sample_prompts=str(path), **changes))


def test_samples_are_written_when_due_and_once(tmp_path, tokenizer):
    run = RunDir.open(str(tmp_path))
    (tmp_path / "samples.jsonl").write_text(json.dumps({"step": 9}) + "\n")  # of an earlier attempt

    with Metrics(run) as metrics:
        sampler = Sampler(
            [[0, 5], [0, 5, 6, 7, 8, 9]],
            lambda batch: [70] * (len(batch.cu_seqlens) - 1),
            tokenizer,
            TrainConfig(sample_every=3, sample_tokens=2),
            packed=True,
            run=run,
            metrics=metrics,
        )
        sampler.write(0)
        for step in range(1, 5):
            sampler.after(step, evaluated=False)
        sampler.write(4)
        sampler.write(4)
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 0, 3, 3, 4, 4]
    assert lines[0] == {
        "step": 0,
        "prompt": tokenizer.decode([0, 5]),
        "answer": tokenizer.decode([70, 70]),
        "ended": False,
    }


def test_samples_at_every_evaluation(tmp_path, tokenizer):
    run = RunDir.open(str(tmp_path))
    with Metrics(run) as metrics:
        sampler = Sampler(
            [[0, 5]],
            lambda _: [70],
            tokenizer,
            TrainConfig(sample_every="evaluation", sample_tokens=1),
            packed=True,
            run=run,
            metrics=metrics,
        )
        for step, evaluated in ((1, False), (2, True), (3, False), (4, True)):
            sampler.after(step, evaluated=evaluated)
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]


def test_only_the_chat_recipe_writes_samples_by_default():
    chosen = {name: TrainConfig.for_recipe(name).sample_every for name in RECIPES}
    assert chosen == dict.fromkeys(RECIPES, None) | {"chat": "evaluation"}
    replace(TrainConfig.for_recipe("chat"), sample_every=None).check()


def test_a_default_without_prompts_that_fit_writes_no_samples(
    data, model_directory, prompts_for, capsys
):
    small = {"max_tokens": 8, "sample_tokens": 5}
    chosen = config(data, model_directory, sample_every="evaluation", **small)
    assert prompts_for(chosen) is None
    assert "no samples" in capsys.readouterr().err
    with pytest.raises(UserError, match="all held-out conversations are too long"):
        prompts_for(config(data, model_directory, **small))


def test_short_held_out_prompts_are_preferred():
    lengths = [129, 128, 5, 300, 1, 2, 3]

    class Table:
        def __init__(self):
            self.lengths = np.array(lengths)

        def row(self, index):
            weights = np.ones(lengths[index] + 1, np.float32)
            weights[:-1] = 0.0
            return np.zeros(len(weights), np.int64), weights

    found = sorted(map(len, held_out_prompts(Table(), 0, 200)))
    assert len(found) == 4
    assert set(found) <= {128, 5, 1, 2, 3}
    lengths[1:3], lengths[4:6] = [140, 150], [160, 170]
    assert sorted(map(len, held_out_prompts(Table(), 0, 150)))[0] == 3
    assert max(map(len, held_out_prompts(Table(), 0, 150))) <= 150


def test_samples_are_written_after_lines_with_any_character_and_after_damaged_ones(
    tmp_path, tokenizer
):
    run = RunDir.open(str(tmp_path))
    # A text may have characters at which str.splitlines() divides and JSON does not escape.
    before = json.dumps({"step": 1, "answer": "a\u2028b\x85c"}, ensure_ascii=False)
    (tmp_path / "samples.jsonl").write_bytes(before.encode() + b'\n{"step": 2, "pro\x00\xff\n')
    with Metrics(run) as metrics:
        Sampler(
            [[0, 5]], lambda _: [70], tokenizer, TrainConfig(sample_every=3, sample_tokens=2),
            packed=True, run=run, metrics=metrics,
        ).write(3)  # fmt: skip
    lines = (tmp_path / "samples.jsonl").read_text().split("\n")[:-1]
    assert lines[0] == before
    assert [json.loads(line)["step"] for line in lines] == [1, 3]
