"""The training job on Ray Train: check, prepare the base model, start the workers, follow them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from ochat_ray import ray_session
from ochat_ray.cluster_resources import most
from ochat_ray.errors import UserError
from ochat_ray.run_dir import RunDir, absolute, completed
from ochat_ray.train import checkpoint as checkpoints
from ochat_ray.train.config import TrainConfig
from ochat_ray.train.continuation import discard, start_of
from ochat_ray.train.follow import follow_metrics
from ochat_ray.train.loop import train_worker
from ochat_ray.train.preflight import (
    FAILURE,
    MODEL_MANIFEST,
    check_inputs,
    check_steps,
    extended_config,
    identity_of,
    make_way,
    prove_exact,
    to_go_on_from,
    with_step_size,
)
from ochat_ray.train.process_group import OwnNetworkConfig
from ochat_ray.train.samples import prompts_of


def train(config: TrainConfig) -> dict[str, Any]:
    """Run the whole job; the content of the model directory's ochat.json.

    Does nothing where the same training is complete already.

    Raises:
        UserError: data, model or output are not usable, or do not fit each other or the cluster.
    """
    config.check()
    manifest = check_inputs(config)
    run = RunDir.open(config.output)
    config = with_step_size(config, to_go_on_from(config))
    start = start_of(config, identity_of(config, manifest), run)
    resumed, identity = start.checkpoint, start.identity
    check_steps(config, manifest, start)
    prompts = prompts_of(config, manifest)
    gives_up = config.overwrite or start.continues
    if done := completed(run, MODEL_MANIFEST, identity, overwrite=gives_up):
        return done
    prove_exact(config, extended_config(config, config.model, manifest)[0])
    ray_session.join_or_start()
    use_gpu = _use_gpu(config)
    make_way(config, run, resumed, start.expected)
    discard(run, start)
    with _staging_directory(config) as staging, follow_metrics(run):
        least = config.num_workers_min
        trainer = TorchTrainer(
            train_worker,
            train_loop_config={
                # A worker has a directory of its own.
                "config": asdict(
                    replace(
                        config,
                        data=absolute(config.data),
                        output=absolute(config.output),
                        deepspeed=config.deepspeed and absolute(config.deepspeed),
                        # or a hub's name
                        model=absolute(config.model)
                        if os.path.exists(config.model)
                        else config.model,
                    )
                ),
                "staging": staging,
                "identity": identity,
                "sample_prompts": prompts,
            },
            torch_config=OwnNetworkConfig(backend="nccl" if use_gpu else "gloo"),
            scaling_config=ScalingConfig(
                # A pair is elastic, in version 2 of Ray Train's API; its annotations are 1's.
                num_workers=config.num_workers  # type: ignore[arg-type]
                if least is None
                else (least, config.num_workers),
                use_gpu=use_gpu,
            ),
            run_config=RunConfig(  # type: ignore[call-arg]
                name=checkpoints.FOLDER,
                storage_path=run.root,
                storage_filesystem=run.fs,
                failure_config=FailureConfig(max_failures=config.max_failures),
                worker_runtime_env={
                    "env_vars": {} if use_gpu else {"DS_ACCELERATOR": "cpu"},
                },
            ),
        )
        try:
            trainer.fit()
        finally:
            _raise_failure(run)
    result = run.read_json(MODEL_MANIFEST)
    assert result is not None, "training ended without a result"
    return result


def _raise_failure(run: RunDir) -> None:
    """Raise what a worker said that no further attempt could mend."""
    if not run.exists(FAILURE):
        return
    with run.fs.open_input_stream(run.path(FAILURE)) as stream:
        message = stream.read().decode()
    run.remove(FAILURE)
    raise UserError(message or "no space left on the device; free some, or choose another --output")


def _use_gpu(config: TrainConfig) -> bool:
    """Whether the workers get a GPU each.

    Raises:
        UserError: the cluster can never hold that many workers, an option has no effect on its
            hardware, or DeepSpeed lacks a compiler.
    """
    gpus, cpus = most("GPU"), most("CPU")
    needed = config.num_workers_min or config.num_workers
    if gpus >= needed:
        return True
    if gpus:
        raise UserError(
            f"{needed} workers need a GPU each, the cluster has {gpus}; use --num-workers {gpus}"
        )
    if cpus < needed:
        raise UserError(
            f"{needed} workers need a CPU each, the cluster has {cpus}; use --num-workers {cpus}"
        )
    for option in ("offload_optimizer", "offload_parameters"):
        if getattr(config, option):
            raise UserError(
                f"--{option.replace('_', '-')} has no effect on workers without GPUs; leave it out"
            )
    if config.attention == "flash_attention_2":
        raise UserError("--attention flash_attention_2 needs GPUs; use auto or sdpa")
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
