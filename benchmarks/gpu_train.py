"""Training speed and memory of LLaMA shapes on one GPU, with packs and with padding.

    python benchmarks/gpu_train.py lengths.json            1B and 7B, packs of 8,192 and 16,384
    python benchmarks/gpu_train.py lengths.json --smoke    a tiny model on the CPU, end to end

`lengths.json` is a JSON list of conversation lengths in tokens. There is no Ray: one process runs
the `Engine` of jobs/train.py, ZeRO-3 with world size 1, bfloat16, gradient checkpointing. Weights
and token ids are random; the last 78% of the tokens of each conversation are supervised, the demo's
share. Packs are compared with padded conversations of similar length (the order of transformers'
LengthGroupedSampler, logits for all positions), and flash-attn, if it can be imported, with
PyTorch's attention; each in a fresh process. The optimizer's state is offloaded to host memory if
the plan of `memory.estimate` does not fit the GPU otherwise.

Tokens per second exclude padding; MFU counts the model's own operations for them.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ochat_ray.train import memory, packing
from ochat_ray.train.batch import Batch, make_batch, trained_weight
from ochat_ray.train.config import TrainConfig
from ochat_ray.train.flops import ModelShape, measured_peak_flops, peak_flops, training_flops
from ochat_ray.train.loss import pack_scales

Attention = Literal["flash_attention_2", "sdpa"]

SHAPES = {
    "tiny": {"hidden": 64, "layers": 2, "heads": 4, "kv_heads": 2, "intermediate": 128},
    "1b": {"hidden": 2048, "layers": 22, "heads": 32, "kv_heads": 4, "intermediate": 5632},
    "7b": {"hidden": 4096, "layers": 32, "heads": 32, "kv_heads": 32, "intermediate": 11008},
}
"""Shapes of TinyLlama-1.1B and LLaMA-7B, and one for trying out this script."""

VOCABULARY = 32_064
"""LLaMA's vocabulary with the end-of-turn token, rounded up to a multiple of 64."""

SUPERVISED = 0.78


def main() -> None:
    import torch

    arguments = parse_arguments()
    if arguments.case:
        train(arguments, *arguments.case)
        return
    if arguments.smoke:
        arguments.shapes, arguments.max_tokens, arguments.steps = ["tiny"], [256], 2
    elif not torch.cuda.is_available():
        print("gpu_train: there is no GPU here; --smoke runs a tiny model", file=sys.stderr)
        sys.exit(2)
    attentions = ["sdpa"]
    if not arguments.smoke and importlib.util.find_spec("flash_attn"):
        attentions.insert(0, "flash_attention_2")
    device = "cpu" if arguments.smoke else torch.cuda.get_device_name()
    print(f"{device}, torch {torch.__version__}; GiB at the peak, and as planned")
    print("model  max tokens  attention          layout  real  tokens/s    MFU  peak  plan")
    failed = False
    for case in product(arguments.shapes, arguments.max_tokens, attentions, ("packed", "padded")):
        failed |= not run(arguments, [str(part) for part in case])
    sys.exit(1 if failed else 0)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("lengths", type=Path)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=["1b", "7b"])
    parser.add_argument("--max-tokens", nargs="+", type=int, default=[8192, 16384])
    parser.add_argument("--packs", type=int, default=4, help="micro-batches an optimizer step")
    parser.add_argument("--steps", type=int, default=6, help="optimizer steps that count")
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--offload-optimizer", action="store_true", help="even where it fits")
    parser.add_argument("--smoke", action="store_true", help="a tiny model on the CPU")
    parser.add_argument("--case", nargs=4, help=argparse.SUPPRESS)
    return parser.parse_args()


def run(arguments: argparse.Namespace, case: list[str]) -> bool:
    """Run one case in a separate process; return whether it completed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": "1"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, __file__, str(arguments.lengths), "--case", *case]
    for option in ("packs", "steps", "warm_up"):
        command += [f"--{option.replace('_', '-')}", str(getattr(arguments, option))]
    if arguments.smoke:
        environment |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        command.append("--smoke")
    if arguments.offload_optimizer:
        command.append("--offload-optimizer")
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    head = "{:<7}{:>10,}  {:<18} {:<6}".format(case[0], int(case[1]), *case[2:])
    if done.returncode == 0:
        print(head, done.stdout.splitlines()[-1], flush=True)
        return True
    short = "OutOfMemoryError" in done.stderr
    print(head, "out of memory" if short else f"failed\n{done.stderr[-3000:]}", flush=True)
    return short


def train(
    arguments: argparse.Namespace, name: str, tokens: str, attention: Attention, layout: str
) -> None:
    """Train one case in this process, and print its figures on the last line."""
    import torch
    from torch import distributed

    from ochat_ray.train import engine as engine_module

    cuda = not arguments.smoke
    max_tokens = int(tokens)
    distributed.init_process_group("nccl" if cuda else "gloo")
    lengths = np.array(json.loads(arguments.lengths.read_text()))
    lengths = np.minimum(lengths // 16 + 2, 128) if arguments.smoke else lengths
    count = arguments.warm_up + arguments.steps
    step_batches = (packs if layout == "packed" else padded_batches)(
        lengths, max_tokens, arguments.packs, count
    )
    model_config = llama(name, context=int(lengths.max()))
    shape = ModelShape.of(model_config)
    offload, plan = planned(shape, arguments, max_tokens, attention, layout)
    config = TrainConfig(
        num_workers=1,
        max_tokens=max_tokens,
        attention=attention,
        gradient_checkpointing=True,
        offload_optimizer=offload,
        zero_stage=3,
    )

    engine_module.load_model = random_model  # type: ignore[assignment]
    if layout == "padded":
        engine_module.logits = padded_logits
        engine_module.attention_implementation = lambda name: name
    engine = engine_module.Engine(config, name, model_config=model_config)
    rng = np.random.default_rng(0)
    ends, flops, real = [], 0.0, 0
    for number, batches in enumerate(step_batches):
        step = [[conversation(rng, n) for n in lengths[batch]] for batch in batches]
        weights = [[sum(trained_weight(w) for _, w in batch) for batch in step]]
        moved = (make_batch(batch).to(engine.device) for batch in step)
        engine.step(moved, pack_scales(weights)[0], rate=1e-3)  # returns with the loss
        ends.append(time.perf_counter())
        if number >= arguments.warm_up:
            flops += training_flops(shape, lengths[np.concatenate(batches)])
            real += int(lengths[np.concatenate(batches)].sum())
    seconds = ends[-1] - ends[arguments.warm_up - 1]
    peak = peak_flops(torch.cuda.get_device_name() if cuda else "cpu", engine.dtype)
    peak = peak or measured_peak_flops(engine.device, engine.dtype)
    used = f"{torch.cuda.max_memory_allocated() / 2**30:.1f}" if cuda else "-"
    share = real / slots(lengths, step_batches[arguments.warm_up :], layout)
    print(
        f"\n{100 * share:>5.1f}%{real / seconds:>10,.0f}{100 * flops / seconds / peak:>6.1f}%"
        f"{used:>6}{plan.total / 2**30:>6.1f}{'  optimizer in host memory' if offload else ''}"
    )
    distributed.destroy_process_group()


def packs(lengths: np.ndarray, max_tokens: int, per_step: int, count: int) -> list[list[list[int]]]:
    """Return the packs of the first steps of an epoch, as indices."""
    steps = packing.steps(
        lengths, world_size=1, max_tokens=max_tokens, packs_per_step=per_step, seed=0, epoch=0
    )
    return [next(steps)[0] for _ in range(count)]


def padded_batches(
    lengths: np.ndarray, max_tokens: int, per_step: int, count: int
) -> list[list[list[int]]]:
    """Return batches of conversations of similar length, as indices, as many as certainly fit."""
    import torch
    from transformers.trainer_pt_utils import LengthGroupedSampler

    size = max_tokens // int(lengths.max())
    generator = torch.Generator().manual_seed(0)
    sampler = LengthGroupedSampler(size, lengths=lengths.tolist(), generator=generator)
    order = np.array(list(sampler))
    batches = order[: order.size - order.size % size].reshape(-1, size)
    chosen = np.random.default_rng(0).permutation(batches)[: count * per_step]
    steps: list[list[list[int]]] = chosen.reshape(count, per_step, size).tolist()
    return steps


def slots(lengths: np.ndarray, steps: list[list[list[int]]], layout: str) -> int:
    """Return the number of computed positions, padding included."""
    batches = [lengths[batch] for step in steps for batch in step]
    return sum(int(n.sum() if layout == "packed" else n.max() * n.size) for n in batches)


def conversation(rng: np.random.Generator, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return random token ids and weights, as `make_batch` takes them."""
    weights = np.arange(length) >= (1 - SUPERVISED) * length
    return rng.integers(3, VOCABULARY, length), weights.astype(np.float32)


def planned(
    shape: ModelShape,
    arguments: argparse.Namespace,
    max_tokens: int,
    attention: Attention,
    layout: str,
) -> tuple[bool, memory.MemoryPlan]:
    """Return whether the optimizer's state is offloaded to host memory, and the plan for that."""
    import torch

    def plan(offload: bool) -> memory.MemoryPlan:
        return memory.estimate(
            shape,
            world_size=1,
            zero_stage=3,
            bf16=True,
            max_tokens=max_tokens,
            gradient_checkpointing=True,
            offload_optimizer=offload,
            attention=attention,
            supervised_tokens=int(SUPERVISED * max_tokens) if layout == "packed" else None,
        )

    if arguments.smoke:
        return False, plan(False)
    there = torch.cuda.get_device_properties(0).total_memory
    offload = arguments.offload_optimizer or not memory.fits(plan(False), there)
    return offload, plan(offload)


def llama(name: str, context: int) -> Any:
    """Return the configuration of one of `SHAPES`."""
    from transformers import LlamaConfig

    shape = SHAPES[name]
    return LlamaConfig(
        hidden_size=shape["hidden"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv_heads"],
        intermediate_size=shape["intermediate"],
        vocab_size=VOCABULARY,
        max_position_embeddings=context,
        tie_word_embeddings=False,
    )


def random_model(_: str, dtype: Any, *, config: Any, attention: str) -> Any:
    """Replace `base_model.load_model`: random weights, partitioned during initialization."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)


def padded_logits(model: Any, batch: Batch, *, vocabulary: int | None = None) -> Any:
    """Replace `forward.logits`: one padded row per conversation, and logits for all positions."""
    from torch.nn.utils.rnn import pad_sequence

    lengths = batch.cu_seqlens.diff().tolist()
    ids = pad_sequence(batch.input_ids[0].split(lengths), batch_first=True)
    mask = pad_sequence((batch.input_ids[0] >= 0).long().split(lengths), batch_first=True)
    result = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.flatten(0, 1)
    return result[mask.flatten().nonzero()[:, 0][batch.label_positions]][:, :vocabulary]


if __name__ == "__main__":
    main()
