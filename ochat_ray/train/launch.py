"""The training job on Ray Train: check, prepare the base model, start the workers, follow them."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from ochat_ray.errors import UserError
from ochat_ray.recipes import recipe
from ochat_ray.run_dir import RunDir, absolute, completed, read_manifest
from ochat_ray.tokenizer import load_tokenizer, tokenizer_digest
from ochat_ray.train.config import TrainConfig
from ochat_ray.train.loop import METRICS, MODEL_MANIFEST, train_worker

_MODEL_FILES = (".safetensors", ".json", ".jinja", ".jsonl")


def train(config: TrainConfig) -> dict[str, Any]:
    """Run the whole job; the content of the model directory's ochat.json.

    Does nothing where the same training is complete already.

    Raises:
        UserError: data, model or output are not usable, or do not fit each other or the cluster.
    """
    config.check()
    manifest = _check_data(config)
    digest = tokenizer_digest(load_tokenizer(config.model))
    if digest != manifest["tokenizer"]:
        raise UserError(
            f"{config.data} was tokenised with another tokenizer ({manifest['tokenizer_path']}) "
            f"than {config.model} has; prepare it again with --tokenizer {config.model}"
        )
    identity = _identity(config, manifest)
    run = RunDir.open(config.output)
    if done := completed(run, MODEL_MANIFEST, identity, overwrite=config.overwrite):
        return done
    run.remove(MODEL_MANIFEST)
    for suffix in _MODEL_FILES:
        for name in run.files("", suffix):
            run.remove(name)

    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    use_gpu = _use_gpu(config)
    with _staging_directory(config) as staging, _follow(run):
        from ochat_ray.train.base_model import prepare_base  # torch, slow to import

        base = str(prepare_base(config.model, Path(staging) / "base", manifest["model_type"]))
        TorchTrainer(
            train_worker,
            train_loop_config={
                # A worker has a directory of its own.
                "config": asdict(
                    replace(config, data=absolute(config.data), output=absolute(config.output))
                ),
                "base": absolute(base) if os.path.exists(base) else base,  # or a hub's name
                "staging": staging,
                "identity": identity,
            },
            torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
            scaling_config=ScalingConfig(num_workers=config.num_workers, use_gpu=use_gpu),
            # The annotations of ray.train are those of version 1 of its API; this is version 2.
            run_config=RunConfig(  # type: ignore[call-arg]
                name="run",
                storage_path=f"{staging}/ray_train",
                failure_config=FailureConfig(max_failures=0),
                worker_runtime_env={
                    "env_vars": {} if use_gpu else {"DS_ACCELERATOR": "cpu"},
                },
            ),
        ).fit()
    result = run.read_json(MODEL_MANIFEST)
    assert result is not None, "training ended without a result"
    return result


def _identity(config: TrainConfig, manifest: dict[str, Any]) -> dict[str, Any]:
    """What the result depends on, in the form in which ochat.json gives it back."""
    settings = asdict(config)
    for name in ("output", "overwrite", "json"):
        del settings[name]
    identity: dict[str, Any] = json.loads(
        json.dumps({**settings, "data_digest": manifest["digest"]})
    )
    return identity


def _check_data(config: TrainConfig) -> dict[str, Any]:
    manifest = read_manifest(config.data)
    expected = recipe(config.recipe).model_type
    if manifest["model_type"] != expected:
        raise UserError(
            f"{config.data} was prepared with the template {manifest['model_type']}, but recipe "
            f"{config.recipe} needs {expected}; prepare it again with --recipe {config.recipe}"
        )
    for split in ("train", "eval"):
        if manifest["tokens"][split]["rows"] == 0:
            raise UserError(
                f"the {split} split of {config.data} is empty; prepare more conversations, or "
                "another --eval-ratio"
            )
    return manifest


def _use_gpu(config: TrainConfig) -> bool:
    """Whether the workers get a GPU each.

    Raises:
        UserError: the cluster can never hold that many workers, or lacks a compiler for DeepSpeed.
    """
    resources = ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
    if gpus >= config.num_workers:
        return True
    if gpus:
        raise UserError(
            f"{config.num_workers} workers need a GPU each, the cluster has {gpus}; "
            f"use --num-workers {gpus}"
        )
    if cpus < config.num_workers:
        raise UserError(
            f"{config.num_workers} workers need a CPU each, the cluster has {cpus}; use "
            f"--num-workers {cpus}"
        )
    if not (shutil.which("g++") or shutil.which("c++")):
        raise UserError("training on CPU needs a C++ compiler for DeepSpeed: install g++")
    return False


@contextmanager
def _staging_directory(config: TrainConfig) -> Iterator[str]:
    """A directory that all workers can write and that is gone afterwards.

    It is beside a local output, which workers on other hosts must share anyway, and has a fixed
    name: what a killed run left in it, this one removes.
    """
    if "://" in config.output:
        with tempfile.TemporaryDirectory(prefix="ochat-ray-training-") as staging:
            yield staging
        return
    output = absolute(config.output)
    staging = os.path.join(os.path.dirname(output), f".training-{os.path.basename(output)}")
    shutil.rmtree(staging, ignore_errors=True)
    os.makedirs(staging)
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def _follow(run: RunDir) -> Iterator[None]:
    """Print a line for every step that the workers write down, as long as the block lasts."""
    ended = threading.Event()

    def follow() -> None:
        printed = 0
        while True:
            last = ended.wait(1.0)
            if run.exists(METRICS):
                with run.fs.open_input_stream(run.path(METRICS)) as stream:
                    lines = stream.read().decode().splitlines()
                for line in lines[printed:]:
                    print(progress_line(json.loads(line)), file=sys.stderr, flush=True)
                printed = len(lines)
            if last:
                return

    thread = threading.Thread(target=follow, daemon=True)
    started = time.monotonic()
    thread.start()
    print(f"{'train':>10}  starting workers", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        ended.set()
        thread.join()
        print(f"{'train':>10}  {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


def progress_line(metrics: dict[str, Any]) -> str:
    """One line of metrics.jsonl for a person."""
    head = f"{'train':>10}  step {metrics['step']} of {metrics['total_steps']}"
    if "eval_loss" in metrics:
        return (
            f"{head} · held-out loss {metrics['eval_loss']:.4f} · end of turn chosen "
            f"{100 * metrics['eval_end_of_turn']:.0f}% of the time"
        )
    left = (metrics["total_steps"] - metrics["step"]) * metrics["seconds"]
    return (
        f"{head} · loss {metrics['loss']:.4f} · lr {metrics['learning_rate']:.2e} · grad norm "
        f"{metrics['grad_norm']:.2f} · {metrics['tokens'] / metrics['seconds']:,.0f} tokens/s · "
        f"{left:.0f} s left"
    )
