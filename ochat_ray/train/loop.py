"""Training loop of a Ray Train worker: restore, evaluate, train, save, export."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray.train
import torch
from torch import distributed

from ochat_ray.errors import UserError
from ochat_ray.models.base_model import load_config, prepare_base, vocabulary_size
from ochat_ray.run_dir import RunDir, not_on_this_host, read_manifest
from ochat_ray.run_lock import check_held
from ochat_ray.tokenization.chat_tokenizer import load_tokenizer_of
from ochat_ray.tokenization.tokenizer import end_of_turn_id
from ochat_ray.train import checkpoint as checkpoints
from ochat_ray.train import failures
from ochat_ray.train.adapter_export import export_checked
from ochat_ray.train.batch import Batch, trained_weight
from ochat_ray.train.checkpoint import Checkpoint
from ochat_ray.train.communication import bus_bandwidth, communication_seconds
from ochat_ray.train.config import TrainConfig
from ochat_ray.train.continuation import schedule_from
from ochat_ray.train.derived import extend_config, min_length_for_own_pack, steps_of
from ochat_ray.train.device_check import check_device, device_name
from ochat_ray.train.early_stopping import held_out_losses, should_stop
from ochat_ray.train.engine import Engine, Evaluation, compute_dtype, device_memory, probe_on_worker
from ochat_ray.train.export import ExportedState, exported_config, publish
from ochat_ray.train.failures import Place
from ochat_ray.train.flops import measured_peak_flops, peak_flops, training_flops
from ochat_ray.train.gauges import Gauges
from ochat_ray.train.lora import shape_of
from ochat_ray.train.lora_options import check_bitsandbytes
from ochat_ray.train.loss import check_finite, check_held_out, pack_scales
from ochat_ray.train.memory import check_holds, estimate_run
from ochat_ray.train.metrics import Metrics, read_metrics
from ochat_ray.train.model_card import write_card
from ochat_ray.train.origin import origin_of
from ochat_ray.train.output import MODEL_MANIFEST, PLOT, output_of, record_model
from ochat_ray.train.plot import plot
from ochat_ray.train.preemption import PreemptionNotice
from ochat_ray.train.restore import local_copy
from ochat_ray.train.round_trip import choose_conversation
from ochat_ray.train.samples import Sampler
from ochat_ray.train.steps import Step, forward_passes, held_out_steps
from ochat_ray.train.tokens import TokenTable


def train_worker(settings: dict[str, Any]) -> None:
    """Run a worker's part of the training; Ray Train calls it, with plain values as `settings`.

    An error that would recur is written to the run's work folder, and ends the run.
    """
    torch.set_num_threads(1)  # Ray's OMP_NUM_THREADS is too late if torch is imported before
    output, staging = settings["config"]["output"], settings["staging"]
    if "://" not in output and not os.path.isdir(staging):  # a folder of the output
        raise not_on_this_host(output)
    run, token = RunDir.open(output), settings["token"]
    work = output_of(output).work(token)
    place, rank = Place(), ray.train.get_context().get_world_rank()
    try:
        check_held(run, token)
        if failures.read(work) is None:
            _Worker(settings, run, place).train()
    except Exception as error:
        if failure := failures.final_failure(error, place, work, rank):
            failures.write(work, failure)
        raise


class _Worker:
    """A worker in one attempt of a run."""

    def __init__(self, settings: dict[str, Any], run: RunDir, place: Place) -> None:
        self.place = place
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.local_rank, self.node_rank = context.get_local_rank(), context.get_node_rank()
        self.settings = settings
        self.config = TrainConfig(**settings["config"])
        check_bitsandbytes(self.config)
        self.run = run
        self.manifest = read_manifest(self.config.data)
        if self.manifest["digest"] != settings["identity"]["data_digest"]:
            raise UserError(f"{self.config.data} was prepared again meanwhile; run training again")
        self.base = self._prepare_base()
        self.tokenizer = load_tokenizer_of(self.base, self.manifest)
        self.table = TokenTable(self.config.data, "train", self.config.max_length)
        self.held_out = TokenTable(self.config.data, "eval", self.config.max_length)
        self.resumed: Checkpoint | None = self._agree(checkpoints.latest(run))
        self.attempt: str = self._agree(uuid.uuid4().hex[:8])

        if self.config.check_devices and torch.cuda.is_available():
            print(check_device(torch.device("cuda", torch.cuda.current_device())))
        model_config = load_config(self.base)
        extend_config(self.config, model_config, self.manifest)
        self.shape = shape_of(self.config, model_config)
        self.min_length_for_own_pack = min_length_for_own_pack(model_config)
        self.steps = steps_of(
            self.config, self.table, self.shape, self.min_length_for_own_pack, settings["identity"]
        )
        mode = probe_on_worker(self.config, model_config)
        self.mode = replace(mode, packed=all(self._gather(mode.packed)))
        if self.rank == 0 and mode.notice:
            print(mode.notice)
        local = context.get_local_world_size()
        check_holds(
            estimate_run(
                self.config,
                self.shape,
                world_size=self.world_size,
                bf16=compute_dtype(self.config.dtype) == torch.bfloat16,
                attention=self.mode.attention,
                cuda=torch.cuda.is_available(),
            ),
            device_memory() or psutil.virtual_memory().total // local,
            self.world_size,
        )
        self.engine = self._engine(model_config)
        if self.config.lora is None:  # raises now, and not after training
            ExportedState(self.engine.model, exported_config(self.engine.model, self.tokenizer))
        self.bandwidth = bus_bandwidth(self.engine.device)

    def train(self) -> None:
        """Train from the latest checkpoint, or from the start, and export the model."""
        resumed = self.resumed
        done, conversations = (resumed.step, resumed.conversations) if resumed else (0, 0)
        evaluation: Evaluation | None = None
        self.metrics = Metrics(
            self.run if self.rank == 0 else None,
            resume_step=done if self.resumed else None,
            token=self.settings["token"], check=self._check_held,
            constants={"total_steps": len(self.steps)},
            wandb=self.config.wandb, mlflow=self.config.mlflow, config=self.settings["identity"],
            sinks=[Gauges(self.config.output)],
        )  # fmt: skip
        with self.metrics:
            before = Evaluation(**resumed.eval_before) if resumed else self._evaluate(0)
            lines = read_metrics(self.run) if self.rank == 0 and resumed else []
            since = schedule_from(self.settings["identity"])
            losses = self._agree(held_out_losses(lines, since, done)) or [before.loss]
            sampler = Sampler(
                self.settings["sample_prompts"], self.engine.next_ids, self.tokenizer, self.config,
                packed=self.mode.packed, run=self.run if self.rank == 0 else None,
                metrics=self.metrics, check=self._check_held,
            )  # fmt: skip
            if not self.resumed:
                sampler.write(0)
            notice = PreemptionNotice(self._agree)
            for step in self.steps.after(done, self.world_size):
                if should_stop(losses, self.config.early_stopping):
                    break
                self.place.text, self.place.step = f"in step {step.number}", step.number
                self.metrics.write(self._step(step))
                done, conversations = step.number, conversations + len(step.conversations)
                evaluation = self._evaluate(done) if step.evaluates else None
                losses += [evaluation.loss] if evaluation else []
                # Before the checkpoint, from which a killed run resumes.
                sampler.after(done, evaluated=step.evaluates)
                if notice.arrived() or step.saves:
                    self._save(step, conversations, before, evaluation)
            evaluation = evaluation or self._evaluate(done)  # resumed from the last step
            sampler.write(done)
        self.place.text = "in the export"
        self._export(before, evaluation, done)
        ray.train.report({"eval_loss": evaluation.loss})

    def _prepare_base(self) -> str:
        """Return the base with the end-of-turn token, which one worker per host adds if needed."""
        directory = Path(self.settings["staging"], f"base-{self.node_rank}")
        if self.local_rank == 0:
            prepare_base(
                self.config.model,
                directory,
                model_type=self.manifest["model_type"],
                allow_pickle=self.config.allow_pickle,
            )
        distributed.barrier()
        return str(directory) if directory.exists() else self.config.model

    def _engine(self, model_config: Any) -> Engine:
        resumed, config = self.resumed, self.config
        if resumed is not None and resumed.dtype != str(compute_dtype(config.dtype)):
            name = resumed.dtype.removeprefix("torch.")
            raise UserError(
                f"the checkpoint was trained in {name}, which --dtype auto does not choose on this "
                f"hardware; give --dtype {name}"
            )
        convert = resumed is not None and resumed.needs_conversion(
            world_size=self.world_size, zero_stage=config.zero_stage
        )
        engine = Engine(
            config,
            self.base,
            model_config=model_config,
            vocabulary=vocabulary_size(self.tokenizer),
            override=self.settings["override"],
            universal=convert,
            attention=self.mode.attention,
        )
        device, dtype = engine.device, engine.dtype
        self.peak_flops = peak_flops(device_name(device), dtype) or measured_peak_flops(
            device, dtype
        )
        if resumed is None:
            return engine
        if self.rank == 0:
            self._check_held()
            checkpoints.prune(self.run, config.keep_checkpoints)
        with local_copy(
            config.output, resumed, staging=self.settings["staging"], node_rank=self.node_rank,
            converts=convert, leads=self.local_rank == 0,
        ) as directory:  # fmt: skip
            engine.load(directory)
            distributed.barrier()
        return engine

    def _step(self, step: Step) -> dict[str, Any]:
        started = time.monotonic()
        indices = step.conversations
        loss_weights = {i: self.table.row(i)[1] for i in indices}
        weights = [
            [sum(trained_weight(loss_weights[i]) for i in pack) for pack in packs]
            for packs in step.packs
        ]
        passes = forward_passes(step.packs, self.rank, packed=self.mode.packed)
        scales = pack_scales(weights, self.config.loss)[self.rank]
        result = self.engine.step(
            (self.table.batch(pack).to(self.engine.device) for pack, _ in passes),
            [0.0 if position is None else scales[position] for _, position in passes],
            rate=step.rate,
        )
        check_finite(step.number, result.loss, result.grad_norm, map(self.table.id, indices))
        seconds = time.monotonic() - started
        lengths = self.table.lengths[indices]
        predicted = sum(int(np.count_nonzero(w[1:])) for w in loss_weights.values())
        flops = training_flops(self.shape, lengths, predicted=predicted)
        return {
            "step": step.number,
            "epoch": step.epoch,
            "loss": result.loss,
            "learning_rate": step.rate * self.config.learning_rate,
            "grad_norm": result.grad_norm,
            "conversations": len(indices),
            "tokens": int(lengths.sum()),
            "world_size": self.world_size,
            "seconds": seconds,
            "mfu": flops / seconds / self.world_size / self.peak_flops,
            "exchange": min(1.0, self._communication_seconds(len(passes)) / seconds),
        }

    def _communication_seconds(self, passes: int) -> float:
        return communication_seconds(
            self.shape,
            width=self.engine.dtype.itemsize,
            packs=passes,
            zero_stage=self.config.zero_stage,
            workers=self.world_size,
            bandwidth=self.bandwidth,
        )

    def _evaluate(self, step: int) -> Evaluation:
        self.place.text = f"in the evaluation at step {step}"
        result = self.engine.evaluate(self._held_out_packs(), end_of_turn_id(self.tokenizer))
        check_held_out(step, result.loss, result.weight)
        self.metrics.write(
            {"step": step, "eval_loss": result.loss, "eval_end_of_turn": result.end_of_turn}
        )
        return result

    def _held_out_packs(self) -> Iterator[Batch]:
        config, table = self.config, self.held_out
        chosen = table.sample(config.eval_tokens, config.seed)
        steps = held_out_steps(
            config, table.lengths[chosen], self.world_size, self.min_length_for_own_pack
        )
        for step in steps:
            for pack, _ in forward_passes(step, self.rank, packed=self.mode.packed):
                yield table.batch([int(chosen[i]) for i in pack]).to(self.engine.device)

    def _save(
        self, step: Step, conversations: int, before: Evaluation, evaluation: Evaluation | None
    ) -> None:
        self.place.text = f"in the checkpoint of step {step.number}"
        name = checkpoints.directory_name(step.number, self.attempt)
        loss = evaluation.loss if evaluation else None
        with self._scratch("checkpoint-") as directory:
            self.engine.save(directory)
            files = self._joined(checkpoints.sizes(directory))
            if self.rank == 0:
                self._check_held()
                checkpoints.record(self.run, name, files)
            distributed.barrier()
            ray.train.report(
                {"step": step.number, "eval_loss": loss},
                checkpoint=ray.train.Checkpoint.from_directory(str(directory)),
                checkpoint_dir_name=name,
            )
        distributed.barrier()  # report() waits for all workers before the upload, not after it
        if self.rank == 0:
            self._check_held()
            record = Checkpoint(
                name=name,
                step=step.number,
                conversations=conversations,
                world_size=self.world_size,
                zero_stage=self.config.zero_stage,
                dtype=str(self.engine.dtype),
                eval_loss=loss,
                eval_before=asdict(before),
                identity=self.settings["identity"],
                files=files,
            )
            self.metrics.flush()
            checkpoints.mark_complete(self.run, record)
            checkpoints.prune(self.run, self.config.keep_checkpoints)
            self._plot()

    def _plot(self) -> None:
        with self.run.writing(PLOT) as stream:
            stream.write(plot(read_metrics(self.run)))

    def _export(self, before: Evaluation, after: Evaluation, done: int) -> None:
        with self._scratch("export-") as directory:
            exported = export_checked(
                self.engine, self.config, self.tokenizer, directory,
                model_type=self.manifest["model_type"], base=self.base,
                pack=self.held_out.batch([choose_conversation(self.held_out)]),
            )  # fmt: skip
            if self.rank == 0:
                result = self._result(before, after, done) | exported
                write_card(directory, result)
                self._check_held()
                record_model(output_of(self.config.output), [p.name for p in directory.iterdir()])
                publish(directory, self.run)
        if self.rank == 0:
            self._plot()
            self._check_held()
            self.run.write_json(MODEL_MANIFEST, result)

    def _result(self, before: Evaluation, after: Evaluation, done: int) -> dict[str, Any]:
        """Return the content of ochat.json, except for what the export adds."""
        best = checkpoints.best(checkpoints.list_complete(self.run))
        return {
            "recipe": self.config.recipe,
            **origin_of(self.manifest),
            "conversations": len(self.table.lengths),
            "step": done,
            "stopped_early": done < len(self.steps),
            "best": best and {"step": best.step, "eval_loss": best.eval_loss},
            "world_size": self.world_size,
            "zero_stage": self.config.zero_stage,
            "dtype": str(self.engine.dtype).removeprefix("torch."),
            "peak_flops": self.peak_flops,
            "deepspeed": self.engine.settings,
            "attention": asdict(self.mode),
            "eval_before": asdict(before),
            "eval_after": asdict(after),
            "config": asdict(self.config),
            "identity": self.settings["identity"],
        }

    @contextlib.contextmanager
    def _scratch(self, prefix: str) -> Iterator[Path]:
        """Create a temporary directory of this worker, on the output's disk if that is local."""
        os.makedirs(self.settings["staging"], exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.settings["staging"], prefix=prefix) as directory:
            yield Path(directory)

    def _joined(self, own_files: dict[str, int]) -> dict[str, int]:
        """Return the files of all workers."""
        return dict(sorted(item for files in self._gather(own_files) for item in files.items()))

    def _gather(self, value: Any) -> list[Any]:
        """Return the values of all workers."""
        found: list[Any] = [None] * self.world_size
        distributed.all_gather_object(found, value)
        return found

    def _check_held(self) -> None:
        """Raise a UserError before a write if another run has taken over the output directory."""
        check_held(self.run, self.settings["token"])

    def _agree(self, value: Any) -> Any:
        """Return the first worker's value on all workers."""
        values = [value]
        distributed.broadcast_object_list(values, src=0)
        return values[0]
