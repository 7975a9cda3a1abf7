"""Driver of a training job: checks, start of the workers with Ray Train, progress and errors."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer

from ochat_ray.cluster import ray_session
from ochat_ray.cluster.resources import most
from ochat_ray.cluster.state import remove_leftovers, remove_on_all_nodes, report_waiting
from ochat_ray.command_line import flag, user_message
from ochat_ray.errors import JobFailedError, UserError, first_line
from ochat_ray.ownership import Ownership
from ochat_ray.run_dir import RunDir, absolute, absolute_if_local
from ochat_ray.run_lock import RunLock, hold
from ochat_ray.train import checkpoint as checkpoints
from ochat_ray.train import failures
from ochat_ray.train.config import TrainConfig
from ochat_ray.train.continuation import Start, announce_start, completed_already, discard
from ochat_ray.train.follow import follow_metrics
from ochat_ray.train.loop import train_worker
from ochat_ray.train.output import clear, output_of, read_model_manifest, record_start
from ochat_ray.train.preflight import Resolved, check_inputs, probe_on_driver, settle
from ochat_ray.train.process_group import OwnNetworkConfig
from ochat_ray.train.report import write_report
from ochat_ray.train.workers import with_workers


def train(config: TrainConfig) -> dict[str, Any]:
    """Run a training job and return the content of the model directory's ochat.json.

    Does nothing if the same training is already complete.

    Raises:
        UserError: data, model or output are not usable, or do not fit each other or the cluster.
        JobFailedError: workers failed too often, or because of a bug.
    """
    config.check()
    config = with_workers(config, start_ray=True)
    resolved, output = check_inputs(config), output_of(config.output)
    if isinstance(task := _settle(config, resolved, output), dict):
        if output.has_work():  # that run was killed during its cleanup
            with hold(output.run, "train"):
                write_report(config.output)
                output.clear_work()
        return task
    probe_on_driver(config, resolved.model_config)
    ray_session.join_or_start()
    use_gpu = _use_gpu(config)
    with hold(output.run, "train") as lock:
        # Another run may have written to the output since the first check.
        if isinstance(task := _settle(config, resolved, output), dict):
            return task
        announce_start(task.config, task.start.checkpoint, task.start.expected)
        lock.check()
        clear(output, task.start.checkpoint)
        discard(output.run, task.start)
        remove_leftovers()
        try:
            _run(task, resolved, output, lock, use_gpu=use_gpu)
            lock.check()
            write_report(config.output)
        finally:
            if not lock.is_lost:
                with suppress(OSError):  # a terminating worker still writes; the next run clears it
                    output.clear_work()
    result = read_model_manifest(output)
    assert result is not None, "training ended without a result"
    return result


@dataclass(frozen=True, kw_only=True, slots=True)
class _Task:
    """Options of a training with the step size resolved, and its starting point."""

    config: TrainConfig
    start: Start


def _settle(config: TrainConfig, resolved: Resolved, output: Ownership) -> _Task | dict[str, Any]:
    """Return the training to run, or the content of ochat.json if it is already complete."""
    config, start = settle(config, resolved, output)
    done = completed_already(config, output, start)
    return done or _Task(config=config, start=start)


def _run(
    task: _Task, resolved: Resolved, output: Ownership, lock: RunLock, *, use_gpu: bool
) -> None:
    """Start the workers and print their progress until they end."""
    config, run = task.config, output.run
    trackers = config.wandb is not None or config.mlflow is not None
    work = record_start(output, lock.token, trackers=trackers, samples=resolved.prompts is not None)
    least = config.num_workers_min
    with (
        _staging_directory(config, work) as staging,
        follow_metrics(run),
        report_waiting("train"),
    ):
        trainer = TorchTrainer(
            train_worker,
            train_loop_config={
                # Absolute paths, since every worker has its own working directory.
                "config": asdict(
                    replace(
                        config,
                        data=absolute(config.data),
                        output=absolute(config.output),
                        deepspeed=config.deepspeed and absolute(config.deepspeed),
                        model=absolute_if_local(config.model),
                    )
                ),
                "staging": staging,
                "token": lock.token,
                "identity": task.start.identity,
                "override": resolved.override,
                "sample_prompts": resolved.prompts,
            },
            torch_config=OwnNetworkConfig(backend="nccl" if use_gpu else "gloo"),
            scaling_config=ScalingConfig(
                # A pair means elastic training in Ray Train V2; the annotations are still V1's.
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
                callbacks=[_EndOnFailure(work)],  # type: ignore[list-item]
                worker_runtime_env={
                    "env_vars": {} if use_gpu else {"DS_ACCELERATOR": "cpu"},
                },
            ),
        )
        error = _fit(trainer)
        if failure := failures.read(work):
            raise failure.error()
        if error is not None:
            raise _as_one_line(error, config) from None


class _EndOnFailure(UserCallback):
    """Callback in Ray Train's controller that ends the run if a retry would fail as well."""

    def __init__(self, work: RunDir) -> None:
        self._work = work

    def after_exception(
        self,
        run_context: Any,  # noqa: ARG002
        worker_exceptions: dict[int, Exception],
    ) -> None:
        """Raise an error, after which the controller does not retry."""
        for error in worker_exceptions.values():
            if message := user_message(error):
                raise UserError(message)
        if failure := failures.read(self._work):
            raise failure.error()


def _fit(trainer: TorchTrainer) -> Exception | None:
    """Run the trainer until it ends; return its error, if any.

    Raises:
        KeyboardInterrupt: Ctrl-C. Ray Train 2.60 installs its own SIGINT handler, which ends the
            workers and then the process with status 0 (`_register_sigint_handler` in
            ray/train/v2/api/data_parallel_trainer.py), and does not restore the previous one.
    """
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit()
    except SystemExit as error:
        raise KeyboardInterrupt from error
    except Exception as error:  # noqa: BLE001 - it is returned
        return error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)
    return None


def _as_one_line(error: Exception, config: TrainConfig) -> Exception:
    """Return a one-line error for an error that no worker reported."""
    failure = getattr(error, "controller_failure", error)
    if message := user_message(failure):
        return UserError(message)
    lost = list(getattr(error, "worker_failures", {}).values())
    what = (
        f"workers failed more than --max-failures {config.max_failures} times; the last"
        if lost
        else "Ray Train failed"
    )
    cause = lost[0] if lost else failure
    return JobFailedError(
        f"{what}: {type(cause).__name__}: {first_line(cause, 300)}; run it again: it "
        "resumes from its last checkpoint"
    )


def _use_gpu(config: TrainConfig) -> bool:
    """Return whether each worker gets a GPU.

    Raises:
        UserError: the cluster cannot scale to that many workers, an option has no effect on its
            hardware, or DeepSpeed's compiler is missing.
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
            raise UserError(f"{flag(option)} has no effect on workers without GPUs; leave it out")
    if config.attention == "flash_attention_2":
        raise UserError("--attention flash_attention_2 needs GPUs; use auto or sdpa")
    if not (shutil.which("g++") or shutil.which("c++")):
        raise UserError("training on CPU needs a C++ compiler for DeepSpeed: install g++")
    return False


@contextmanager
def _staging_directory(config: TrainConfig, work: RunDir) -> Iterator[str]:
    """Create a directory that all workers can write to.

    For a local output it is the run's work folder, which workers on other hosts must share anyway.
    """
    if "://" in config.output:
        with tempfile.TemporaryDirectory(prefix="ochat-ray-training-") as staging:
            try:
                yield staging
            finally:
                remove_on_all_nodes(staging)  # each host of workers has its own
        return
    os.makedirs(work.root, exist_ok=True)
    yield work.root
