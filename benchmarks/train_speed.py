"""Training throughput in supervised tokens per second, compared with other trainers.

    python jobs/prepare.py                             token tables, once
    python benchmarks/train_speed.py                   conversations of up to 640 tokens
    python benchmarks/train_speed.py --max-length 320  those that the demo trains on

Two processes of one thread, gloo and DeepSpeed ZeRO-3 on CPU, the demo's base model, no Ray and no
gradient checkpointing. Contenders:

- ours: `Engine`, with packs from `packing.plan`;
- padded, as in 2023: conversations of similar length (within groups of 50 micro-batches) padded to
  the longest, with an attention mask, logits for all positions and the mean of micro-batch means;
- trainer: transformers' Trainer with its own use of DeepSpeed, on the same padded micro-batches;
- ours with logits for all positions, and ours with transformers' own use of PyTorch's attention, a
  mask for the entire pack: both measure the benefit of the respective optimization.

Every round draws complete steps from the order in which transformers' LengthGroupedSampler goes
through the table. All contenders process the same conversations in the same number of steps and
micro-batches, with the same DeepSpeed configuration, in fresh processes, in rotating order. Time is
measured from the end of the first step to the end of the last; CPU seconds are those of both
processes.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import distributed
from torch.nn.utils.rnn import pad_sequence

from ochat_ray.demo import assets
from ochat_ray.models.base_model import load_model
from ochat_ray.recipes import recipe
from ochat_ray.train import engine as engine_module
from ochat_ray.train.batch import Batch, make_batch, trained_weight
from ochat_ray.train.config import TrainConfig
from ochat_ray.train.deepspeed_config import deepspeed_config
from ochat_ray.train.forward import logits
from ochat_ray.train.loss import pack_scales
from ochat_ray.train.packing import plan
from ochat_ray.train.tokens import TokenTable

WORLD_SIZE = 2
CONTENDERS = ["ours", "padded", "trainer", "ours, all logits", "ours, masked attention"]
IGNORED = -100  # the label that transformers leaves out of the loss
DTYPE = engine_module.compute_dtype("auto")
BF16 = str(DTYPE) == "torch.bfloat16"

Times = list[tuple[float, float]]  # ends of steps: wall clock, and CPU time of this process


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="runs/demo/data", help="token tables")
    parser.add_argument("--model", help="a Hugging Face directory; without it the demo's")
    parser.add_argument("--max-length", type=int, default=recipe("demo").context_length)
    parser.add_argument("--micro-batch", type=int, default=2, help="conversations, padded")
    parser.add_argument("--steps", type=int, default=2, help="that count")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    for option, kind in (("contender", str), ("rank", int), ("seed", int), ("result", Path)):
        parser.add_argument(f"--{option}", type=kind, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    (work if arguments.contender else compare)(arguments)


# ---- the processes that train


class Work(NamedTuple):
    """Input of every contender; `steps`, the first for warm-up, has the shape (steps, rows)."""

    model: str
    table: TokenTable
    steps: np.ndarray
    config: TrainConfig
    settings: dict[str, Any]
    rank: int


def work(arguments: argparse.Namespace) -> None:
    """Run one process of one contender; the first process writes the results."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=arguments.rank, world_size=WORLD_SIZE)
    table, size = TokenTable(arguments.data, "train", arguments.max_length), arguments.micro_batch
    config = replace(TrainConfig.for_recipe("demo"), max_tokens=size * arguments.max_length)
    given = Work(
        model=arguments.model or str(assets.base_model()),
        table=table,
        steps=draw_steps(table.lengths, size, arguments),
        config=config,
        settings=deepspeed_config(config, None, world_size=WORLD_SIZE, bf16=BF16, cuda=False),
        rank=arguments.rank,
    )
    name, _, variant = arguments.contender.partition(", ")
    train = {"ours": train_ours, "padded": train_padded, "trainer": train_trainer}[name]
    (began, cpu_began), *_, (ended, cpu_ended) = train(given, variant)
    cpu_s = torch.tensor(cpu_ended - cpu_began)
    distributed.all_reduce(cpu_s)
    if arguments.rank == 0:
        rows = given.steps[1:].reshape(-1, size)
        result = {
            "wall_s": ended - began,
            "cpu_s": cpu_s.item(),
            "tokens": int(table.lengths[rows].sum()),
            "supervised": sum(int((table.row(i)[1][1:] > 0).sum()) for i in rows.flat),
            "slots": int(table.lengths[rows].max(axis=1).sum() * size),
        }
        arguments.result.write_text(json.dumps(result))
    distributed.barrier()
    distributed.destroy_process_group()


def draw_steps(lengths: np.ndarray, size: int, arguments: argparse.Namespace) -> np.ndarray:
    """Draw some steps of an epoch grouped by length as in transformers."""
    from transformers.trainer_pt_utils import LengthGroupedSampler

    random = torch.Generator().manual_seed(arguments.seed)
    order = np.array(list(LengthGroupedSampler(size, lengths=lengths.tolist(), generator=random)))
    size *= WORLD_SIZE
    steps = order[: order.size - order.size % size].reshape(-1, size)
    return np.random.default_rng(arguments.seed).permutation(steps)[: 1 + arguments.steps]


def now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def train_ours(given: Work, variant: str) -> Times:
    """Train with Engine on packs; the warm-up step is packed separately."""
    if variant == "all logits":
        engine_module.logits = all_logits
    elif variant == "masked attention":
        engine_module.attention_implementation = lambda name: "sdpa"  # noqa: ARG005
    engine = engine_module.Engine(given.config, given.model)
    table, ends = given.table, []
    for part in (given.steps[:1], given.steps[1:]):
        options = {"max_tokens": given.config.max_tokens, "sequences_per_step": part.shape[1]}
        lengths = table.lengths[part.ravel()]
        for step in plan(lengths, world_size=WORLD_SIZE, seed=0, epoch=0, **options):
            rows = [[[table.row(part.flat[i]) for i in p] for p in own] for own in step]
            weights = [[sum(trained_weight(w) for _, w in p) for p in own] for own in rows]
            batches = [make_batch(pack) for pack in rows[given.rank]]
            engine.step(batches, pack_scales(weights)[given.rank], rate=1e-3)
            ends.append(now())
    return ends


def all_logits(model: Any, batch: Batch, **options: Any) -> torch.Tensor:
    """Return `forward.logits` after computing the logits of all positions."""
    everywhere = replace(batch, label_positions=torch.arange(batch.input_ids.shape[1]))
    return logits(model, everywhere, **options)[batch.label_positions]


def train_padded(given: Work, _: str) -> Times:
    """Train on padded micro-batches, with the mean of their means."""
    import deepspeed
    from transformers.integrations import HfDeepSpeedConfig

    deepspeed.init_distributed(dist_backend="gloo")
    alive = HfDeepSpeedConfig(given.settings)  # transformers partitions while it loads
    model = load_model(given.model, DTYPE, attention="sdpa")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=given.settings)
    del alive
    engine.train()
    ends = []
    for step in given.steps:
        batch = padded_batch([given.table.row(i) for i in np.split(step, WORLD_SIZE)[given.rank]])
        engine.backward(engine(**batch, use_cache=False).loss)
        engine.step()
        ends.append(now())
    return ends


def train_trainer(given: Work, _: str) -> Times:
    """Train with transformers' Trainer, in a given order grouped by length."""
    from accelerate import PartialState
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Ends(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(now())

    # Without a GPU, TrainingArguments has accelerate 1.15 start DeepSpeed for one process.
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    PartialState(backend="gloo")
    size = given.steps.shape[1] // WORLD_SIZE
    sizes = {"train_micro_batch_size_per_gpu": size, "train_batch_size": size * WORLD_SIZE}
    ends: Times = []
    options = TrainingArguments(
        output_dir=tempfile.gettempdir(),  # nothing is written
        accelerator_config={"use_configured_state": True},
        deepspeed=given.settings | sizes,
        use_cpu=True,
        bf16=BF16,
        per_device_train_batch_size=size,
        max_steps=len(given.steps),
        train_sampling_strategy="sequential",
        learning_rate=1e-6,
        save_strategy="no",
        report_to="none",
    )
    Trainer(
        model=load_model(given.model, DTYPE, attention="sdpa"),
        args=options,
        train_dataset=[given.table.row(i) for i in given.steps.flat],
        data_collator=padded_batch,
        callbacks=[Ends()],
    ).train()
    return ends


def padded_batch(conversations: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, torch.Tensor]:
    """Pad conversations to the longest; return ids, attention mask and labels."""
    ids = [torch.from_numpy(ids.astype(np.int64)) for ids, _ in conversations]
    labels = [torch.from_numpy(np.where(w > 0, ids, IGNORED)).long() for ids, w in conversations]
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
    }


# ---- the comparison


def compare(arguments: argparse.Namespace) -> None:
    names = ["ours", *(name for name in arguments.contenders if name != "ours")]
    results: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for turn in range(arguments.rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            result = run(name, seed=turn)
            results[name].append(result)
            speed = result["tokens"] / result["wall_s"]
            print(f"round {turn + 1}  {name:<26}{speed:>8.1f} tokens/s", flush=True)
    sums = {key: sum(row[key] for row in results[names[0]]) for key in result}
    print(
        f"{sums['tokens']:,} tokens, {100 * sums['supervised'] / sums['tokens']:.1f}% supervised; "
        f"{100 - 100 * sums['tokens'] / sums['slots']:.1f}% of padded batches is padding\n"
        f"{'median (range)':<26}{'tokens/s':>22}{'supervised/s':>14}{'tokens/CPU s':>14}"
        f"{'ours/this':>20}{'by CPU':>20}"
    )
    for name, rows in results.items():
        pairs = list(zip(rows, results["ours"], strict=True))
        supervised = statistics.median(row["supervised"] / row["wall_s"] for row in rows)
        cpu = statistics.median(row["tokens"] / row["cpu_s"] for row in rows)
        print(
            f"{name:<26}{spread([row['tokens'] / row['wall_s'] for row in rows]):>22}"
            f"{supervised:>14.1f}{cpu:>14.1f}"
            f"{spread([row['wall_s'] / ours['wall_s'] for row, ours in pairs]):>20}"
            f"{spread([row['cpu_s'] / ours['cpu_s'] for row, ours in pairs]):>20}"
        )


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def run(name: str, seed: int) -> dict[str, float]:
    """Run one contender in fresh processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    environment |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    environment |= {k: str(WORLD_SIZE) for k in ("WORLD_SIZE", "LOCAL_SIZE", "LOCAL_WORLD_SIZE")}
    with tempfile.TemporaryDirectory() as folder:
        result, log = Path(folder, "result.json"), Path(folder, "log")
        command = [sys.executable, *sys.argv, "--contender", name, "--seed", str(seed)]
        command += ["--result", str(result), "--rank"]
        with log.open("w") as out:
            workers = []
            for rank in map(str, range(WORLD_SIZE)):
                ranked = environment | {"RANK": rank, "LOCAL_RANK": rank}
                started = subprocess.Popen([*command, rank], env=ranked, stdout=out, stderr=out)
                workers.append(started)
        if [worker for worker in workers if worker.wait()]:
            sys.exit(f"train_speed: {name} failed\n{log.read_text()[-4000:]}")
        return dict(json.loads(result.read_text()))


if __name__ == "__main__":
    main()
