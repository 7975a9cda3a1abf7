"""Sampled answers of the model to a few prompts during training, in samples.jsonl.

Decoding is greedy, so that only the model changes between steps. All prompts share one pack, and
each new token takes a forward pass of all workers: there is no KV cache, as in training.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ochat_ray.errors import UserError
from ochat_ray.run_dir import RunDir
from ochat_ray.tokenization.template import encode
from ochat_ray.tokenization.tokenizer import end_of_turn_id
from ochat_ray.train.batch import Batch, make_batch
from ochat_ray.train.config import TrainConfig
from ochat_ray.train.metrics import Metrics, lines_up_to
from ochat_ray.train.tokens import TokenTable

SAMPLES = "samples.jsonl"

EVERY_EVALUATION = "evaluation"
"""Value of `--sample-every` for samples at every evaluation."""

HELD_OUT_PROMPTS = 4
"""Number of prompts from the held-out split, if there is no file with prompts."""

SHORT_PROMPT = 128
"""Tokens of a held-out prompt that is preferred to longer ones."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """Prompt, and the model's answer after a step.

    `ended` is whether the model chose its end-of-turn token within the limit.
    """

    step: int
    prompt: str
    answer: str
    ended: bool


def read_prompts(path: str, model_type: str, tokenizer: Any) -> list[list[int]]:
    """Return the token ids of a file's prompts, one per line, encoded as in serving.

    Raises:
        UserError: the file cannot be read or has no prompt.
    """
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--sample-prompts: cannot read {path}: {error}") from error
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise UserError(f"--sample-prompts: {path} has no prompt; give one per line")
    turns = [[{"role": "user", "text": text}] for text in texts]
    return [
        [int(i) for i in encode(turn, model_type, tokenizer, add_generation_prompt=True)[0]]
        for turn in turns
    ]


def held_out_prompts(table: TokenTable, seed: int, most: int) -> list[list[int]]:
    """Return the token ids of held-out conversations before their first supervised token.

    Prompts of more than `most` tokens are skipped; those of at most `SHORT_PROMPT` tokens come
    first, since each token of an answer takes a forward pass over its prompt.
    """
    short: list[list[int]] = []
    others: list[list[int]] = []
    for index in np.random.default_rng(seed).permutation(table.lengths.size):
        ids, weights = table.row(int(index))
        start = int(np.flatnonzero(weights)[0]) if weights.any() else len(ids)
        if 0 < start <= most:
            chosen = short if start <= SHORT_PROMPT else others
            if len(chosen) < HELD_OUT_PROMPTS:
                chosen.append([int(i) for i in ids[:start]])
        if len(short) == HELD_OUT_PROMPTS:
            break
    return [*short, *others][:HELD_OUT_PROMPTS]


def prompts_of(
    config: TrainConfig, held_out: TokenTable, model_type: str, tokenizer: Any
) -> list[list[int]] | None:
    """Return the token ids of a run's sample prompts; None if it writes no samples.

    Raises:
        UserError: they cannot be read, or do not fit a pack. Samples that are only a recipe's
            default are omitted instead.
    """
    if config.sample_every is None:
        return None
    if config.sample_prompts is None:
        most = config.max_tokens // HELD_OUT_PROMPTS - config.sample_tokens - 1
        prompts = held_out_prompts(held_out, config.seed, most)
        if not prompts and config.sample_every == EVERY_EVALUATION:
            print("no samples: all held-out prompts are too long for a pack", file=sys.stderr)
            return None
    else:
        prompts = read_prompts(config.sample_prompts, model_type, tokenizer)
    check_prompts(prompts, config.sample_tokens, config.max_tokens)
    return prompts


def check_prompts(prompts: Sequence[Sequence[int]], tokens: int, max_tokens: int) -> None:
    """Check that prompts and their answers fit one pack.

    Raises:
        UserError: they do not, or there are none.
    """
    if not prompts:
        raise UserError(
            "--sample-every: the prompts of all held-out conversations are too long to fit "
            f"{HELD_OUT_PROMPTS} of them with answers of {tokens:,} tokens into a pack of "
            f"{max_tokens:,}; give a smaller --sample-tokens, or --sample-prompts FILE"
        )
    room = sum(len(prompt) + tokens + 1 for prompt in prompts)
    if room > max_tokens:
        raise UserError(
            f"{len(prompts)} sample prompts with answers of {tokens} tokens take {room:,} tokens, "
            f"but a pack holds {max_tokens:,}; give fewer or shorter prompts, or a smaller "
            "--sample-tokens"
        )


def generate(
    next_ids: Callable[[Batch], list[int]],
    prompts: Sequence[Sequence[int]],
    *,
    tokens: int,
    end_of_turn_id: int,
    packed: bool = True,
) -> list[list[int]]:
    """Return greedy answers, each up to its end-of-turn token or to `tokens` tokens.

    `next_ids` returns the most likely next token of each conversation of a pack; with several
    workers it must return the same on all of them. Without `packed` each conversation is a pack.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    for _ in range(tokens):
        open_ = [n for n, answer in enumerate(answers) if end_of_turn_id not in answer[-1:]]
        if not open_:
            break
        rows = [[*prompts[n], *answers[n]] for n in open_]
        packs = [rows] if packed else [[row] for row in rows]
        ids = [id for pack in packs for id in next_ids(_last_positions(pack))]
        for n, id in zip(open_, ids, strict=True):
            answers[n].append(id)
    return answers


def _last_positions(conversations: Sequence[Sequence[int]]) -> Batch:
    """Return a pack whose label positions are the last positions of the conversations.

    Each conversation gets one more token as the label, which does not affect those before it.
    """
    rows = []
    for ids in conversations:
        weights = np.zeros(len(ids) + 1, np.float32)
        weights[-1] = 1.0
        rows.append((np.array([*ids, ids[-1]], np.int64), weights))
    return make_batch(rows)


class Sampler:
    """Writer of samples to samples.jsonl and TensorBoard; all workers call it at the same steps.

    Args:
        prompts: token ids; None writes no samples.
        next_ids: returns the most likely next token of each conversation of a pack.
        tokenizer: decodes prompts and answers.
        config: options of the run, with the steps between samples and the tokens per answer.
        packed: whether conversations may share a pack.
        run: the output directory, only on the first worker.
        metrics: writer of TensorBoard.
        check: called before samples.jsonl is written; raises if another run owns the directory.
    """

    def __init__(
        self,
        prompts: Sequence[Sequence[int]] | None,
        next_ids: Callable[[Batch], list[int]],
        tokenizer: Any,
        config: TrainConfig,
        *,
        packed: bool,
        run: RunDir | None,
        metrics: Metrics,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._prompts = prompts
        self._next_ids = next_ids
        self._tokenizer = tokenizer
        self._every = config.sample_every
        self._tokens = config.sample_tokens
        self._packed = packed
        self._run = run
        self._metrics = metrics
        self._check = check
        self._last: int | None = None

    def after(self, step: int, *, evaluated: bool) -> None:
        """Write samples if they are due after this step; `evaluated` if an evaluation followed."""
        if isinstance(self._every, int):
            due = step % self._every == 0
        else:
            due = evaluated and self._every == EVERY_EVALUATION
        if due:
            self.write(step)

    def write(self, step: int) -> None:
        """Write samples of the model after this step, unless they are already written."""
        if self._prompts is None or step == self._last:
            return
        self._last = step
        end = end_of_turn_id(self._tokenizer)
        answers = generate(
            self._next_ids,
            self._prompts,
            tokens=self._tokens,
            end_of_turn_id=end,
            packed=self._packed,
        )
        if self._run is None:
            return
        samples = [
            Sample(
                step=step,
                prompt=self._tokenizer.decode(list(prompt)),
                answer=self._tokenizer.decode([i for i in answer if i != end]),
                ended=end in answer,
            )
            for prompt, answer in zip(self._prompts, answers, strict=True)
        ]
        self._check()
        _write_lines(self._run, samples)
        for number, sample in enumerate(samples, 1):
            self._metrics.write_text(step, f"sample {number}", _as_markdown(sample))


def drop_later_samples(run: RunDir, step: int) -> None:
    """Remove samples after a step from samples.jsonl, since their weights are discarded."""
    if run.exists(SAMPLES):
        run.write_text(SAMPLES, "".join(f"{line}\n" for line in lines_up_to(run, SAMPLES, step)))


def _as_markdown(sample: Sample) -> str:
    """Return a sample as a Markdown code block, which is displayed unchanged."""
    end = "" if sample.ended else " …"
    lines = f"{sample.prompt}{sample.answer}{end}".splitlines()
    return "\n".join(f"    {line}" for line in lines)


def _write_lines(run: RunDir, samples: Sequence[Sample]) -> None:
    """Write a step's samples after those of earlier steps, replacing those of later steps."""
    kept = lines_up_to(run, SAMPLES, samples[0].step - 1)
    new = [json.dumps(asdict(sample), ensure_ascii=False) for sample in samples]
    run.write_text(SAMPLES, "".join(f"{line}\n" for line in [*kept, *new]))
