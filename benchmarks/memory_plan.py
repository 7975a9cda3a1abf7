"""Measure the peak memory of training workers beside the plan of `ochat_ray.train.memory`.

    python benchmarks/memory_plan.py                       two workers on this machine's CPUs
    python benchmarks/memory_plan.py --shapes deep --zero-stages 3 --max-tokens 2048
    torchrun --nproc-per-node 8 benchmarks/memory_plan.py --gpu --shapes 7b --zero-stages 3

Random models of several shapes train for a few steps, in fresh processes, with `Engine` alone: no
Ray. Every pack is full and every token is supervised, as the plan assumes.

On CPU, memory is the anonymous memory of a worker (RssAnon in /proc), sampled every 2 ms from
outside, less what it has before it builds its engine: Python, its libraries, the process group. On
GPU it is `torch.cuda.max_memory_allocated`. Only the steps count, not the loading of the model.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed

from ochat_ray.train.batch import Batch, make_batch, trained_weight
from ochat_ray.train.config import TrainConfig
from ochat_ray.train.engine import Engine, attention_implementation
from ochat_ray.train.flops import ModelShape
from ochat_ray.train.memory import MemoryPlan, estimate_run

SHAPES: dict[str, dict[str, Any]] = {
    # As SmolLM2-135M: many narrow layers, tied embeddings.
    "deep": {
        "family": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
        "tie_word_embeddings": True,
    },
    "wide": {
        "family": "llama", "vocab_size": 32000, "hidden_size": 1536, "intermediate_size": 4096,
        "num_hidden_layers": 4, "num_attention_heads": 12, "num_key_value_heads": 12,
        "tie_word_embeddings": False,
    },
    # As Qwen2's: most parameters are embeddings, and logits are large.
    "words": {
        "family": "qwen2", "vocab_size": 151936, "hidden_size": 512, "intermediate_size": 2048,
        "num_hidden_layers": 12, "num_attention_heads": 8, "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "neox": {
        "family": "gpt_neox", "vocab_size": 50304, "hidden_size": 768, "intermediate_size": 3072,
        "num_hidden_layers": 12, "num_attention_heads": 12,
    },
    "1b": {
        "family": "llama", "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192,
        "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
        "tie_word_embeddings": True,
    },
    "7b": {
        "family": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
        "tie_word_embeddings": False,
    },
}  # fmt: skip
WORKERS = 2  # on CPU


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["deep", "wide", "words"])
    parser.add_argument("--zero-stages", nargs="+", type=int, default=[2, 3])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--max-tokens", type=int, default=1024)
    parser.add_argument("--checkpointing", nargs="+", choices=["yes", "no"], default=["no"])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--packs", type=int, default=2, help="of a worker and step")
    parser.add_argument("--gpu", action="store_true", help="started by torchrun, a GPU each")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        work(arguments, Path(arguments.case))
        return
    if int(os.environ.get("RANK", 0)) == 0:
        names = ("shape", "stage", "dtype", "ckpt", "plan", "measured", "plan/measured")
        print("{:<8}{:>6}{:>10}{:>6}{:>9}{:>10}{:>15}".format(*names), flush=True)
    for case in cases(arguments):
        with tempfile.TemporaryDirectory() as folder:
            measure = on_gpu if arguments.gpu else on_cpus
            plan, measured, parts = measure(arguments, case, Path(folder))
        if int(os.environ.get("RANK", 0)) == 0:
            print(
                f"{case['shape']:<8}{case['zero_stage']:>6}{case['dtype']:>10}"
                f"{'yes' if case['gradient_checkpointing'] else 'no':>6}{plan / 1e6:>7,.0f}MB"
                f"{measured / 1e6:>8,.0f}MB{plan / measured:>15.2f}   {parts}",
                flush=True,
            )


def cases(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    combined = itertools.product(
        arguments.shapes, arguments.zero_stages, arguments.dtypes, arguments.checkpointing
    )
    return [
        {
            "shape": shape,
            "zero_stage": stage,
            "dtype": dtype,
            "gradient_checkpointing": checkpointing == "yes",
        }
        for shape, stage, dtype, checkpointing in combined
    ]


def configured(arguments: argparse.Namespace, case: dict[str, Any]) -> TrainConfig:
    return TrainConfig(
        zero_stage=case["zero_stage"],
        dtype=case["dtype"],
        gradient_checkpointing=case["gradient_checkpointing"],
        max_tokens=arguments.max_tokens,
    )


def model_config(name: str) -> Any:
    from transformers import AutoConfig

    sizes = dict(SHAPES[name])
    return AutoConfig.for_model(sizes.pop("family"), max_position_embeddings=8192, **sizes)


def plan_of(arguments: argparse.Namespace, case: dict[str, Any], workers: int) -> MemoryPlan:
    config = configured(arguments, case)
    return estimate_run(
        config,
        ModelShape.of(model_config(case["shape"])),
        world_size=workers,
        bf16=config.dtype == "bfloat16",
        attention=attention_implementation(config.attention),
        cuda=arguments.gpu,
    )


def described(plan: MemoryPlan) -> str:
    names = (
        "weights",
        "gradients",
        "optimizer",
        "communication",
        "activations",
        "logits",
        "update",
    )
    return " ".join(f"{name} {getattr(plan, name) / 1e6:,.0f}" for name in names)


# ---- on CPU: two processes, watched from here


def on_cpus(
    arguments: argparse.Namespace, case: dict[str, Any], folder: Path
) -> tuple[int, int, str]:
    """Plan, measured peak of the larger worker, and the plan's parts."""
    make_model(case["shape"], folder / "model")
    task = folder / "case.json"
    task.write_text(json.dumps(case))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(WORKERS),
        "LOCAL_SIZE": str(WORKERS), "LOCAL_WORLD_SIZE": str(WORKERS),
    }  # fmt: skip
    log = folder / "log"
    with log.open("w") as out:
        workers = [
            subprocess.Popen(
                [sys.executable, *sys.argv, "--case", str(task)],
                env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=out,
                stderr=out,
            )
            for rank in range(WORKERS)
        ]
        peaks = watch(workers, folder)
    if any(worker.returncode for worker in workers):
        sys.exit(f"memory_plan: {case} failed\n{log.read_text()[-4000:]}")
    plan = plan_of(arguments, case, WORKERS)
    held = json.loads((folder / "held").read_text())
    return plan.total, max(peaks), f"{described(plan)}; held {held / 1e6:,.0f}"


def watch(workers: list[subprocess.Popen[bytes]], folder: Path) -> list[int]:
    """Each worker's highest memory while it trains, less what it had before its engine."""
    peaks, baselines = [0] * len(workers), [0] * len(workers)
    while any(worker.poll() is None for worker in workers):
        for rank, worker in enumerate(workers):
            if not (folder / f"trains-{rank}").exists() or (folder / f"ends-{rank}").exists():
                continue
            baselines[rank] = int((folder / f"trains-{rank}").read_text() or 0)
            peaks[rank] = max(peaks[rank], anonymous_memory(worker.pid))
        time.sleep(0.002)
    return [peak - before for peak, before in zip(peaks, baselines, strict=True)]


def anonymous_memory(pid: int | str) -> int:
    """Bytes of a process's memory that no file backs; 0 where it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next(
        (int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon")),
        0,
    )


def work(arguments: argparse.Namespace, task: Path) -> None:
    """One CPU process's part of one case."""
    folder, rank = task.parent, int(os.environ["RANK"])
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    import deepspeed  # noqa: F401 - and what it imports

    distributed.all_reduce(torch.zeros(1))
    torch.nn.Linear(8, 8)(torch.zeros(8)).sum().backward()
    case = json.loads(task.read_text())
    ModelShape.of(model_config(case["shape"]))  # imports the model's code
    gc.collect()
    baseline = anonymous_memory("self")
    engine = Engine(configured(arguments, case), str(folder / "model"))
    gc.collect()
    (folder / "held").write_text(str(anonymous_memory("self") - baseline))
    started = folder / f"trains-{rank}.tmp"
    started.write_text(str(baseline))
    started.rename(folder / f"trains-{rank}")
    train(arguments, engine, case)
    (folder / f"ends-{rank}").touch()
    distributed.barrier()
    sys.stdout.flush()
    os._exit(0)  # a thread of gloo's may wait for the GIL


# ---- on GPUs: this process is a worker


def on_gpu(
    arguments: argparse.Namespace, case: dict[str, Any], folder: Path
) -> tuple[int, int, str]:
    """Plan, measured peak of the largest worker, and the plan's parts."""
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if not distributed.is_initialized():
        distributed.init_process_group("nccl")
    shared = [str(folder)]
    distributed.broadcast_object_list(shared, src=0)
    if distributed.get_rank() == 0:
        make_model(case["shape"], folder / "model")
    distributed.barrier()
    before = torch.cuda.memory_allocated()
    engine = Engine(configured(arguments, case), str(Path(shared[0], "model")))
    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    train(arguments, engine, case)
    peak = torch.tensor(torch.cuda.max_memory_allocated() - before, device=engine.device)
    distributed.all_reduce(peak, distributed.ReduceOp.MAX)
    del engine
    gc.collect()
    torch.cuda.empty_cache()
    plan = plan_of(arguments, case, distributed.get_world_size())
    return plan.total, int(peak.item()), described(plan)


# ---- both


def make_model(name: str, directory: Path) -> None:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(model_config(name), dtype=torch.bfloat16)
    model.save_pretrained(directory)


def train(arguments: argparse.Namespace, engine: Engine, case: dict[str, Any]) -> None:
    """Train a few steps on full packs of two conversations whose tokens are all supervised."""
    rng = np.random.default_rng(0)
    half = arguments.max_tokens // 2
    words = SHAPES[case["shape"]]["vocab_size"]
    weights = np.ones(half, np.float32)

    def pack() -> Batch:
        return make_batch([(rng.integers(1, words, half), weights) for _ in range(2)])

    count = arguments.packs
    total = 2 * trained_weight(weights) * count * distributed.get_world_size()
    for _ in range(arguments.steps):
        packs = [pack().to(engine.device) for _ in range(count)]
        engine.step(packs, [1 / total] * count, rate=1e-3)


if __name__ == "__main__":
    main()
