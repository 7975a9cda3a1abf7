"""DeepSpeed engine around a causal language model: steps, evaluations and checkpoints."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from ochat_ray.models.base_model import load_model
from ochat_ray.train.batch import Batch, weighted_nll
from ochat_ray.train.chunked_loss import chunk_rows, chunked_evaluation, chunked_nll, has_plain_head
from ochat_ray.train.config import TrainConfig
from ochat_ray.train.deepspeed_config import deepspeed_config
from ochat_ray.train.forward import PACKED_SDPA, logits, register_packed_sdpa
from ochat_ray.train.lora import adapt
from ochat_ray.train.lora_options import quantizes_base
from ochat_ray.train.optimizer import freeze, make_optimizer, parameter_groups
from ochat_ray.train.probe import AttentionMode, candidates_of, choose_attention_mode
from ochat_ray.train.quantization import load_quantized
from ochat_ray.train.shared_memory_op import load_shared_memory_op
from ochat_ray.train.universal import complete_for_all_stages

_TAG = "deepspeed"

_PROBE_BYTES = 16 * 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """Result of an optimizer step over all workers: the loss and its gradient's norm."""

    loss: float
    grad_norm: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Held-out figures over all workers.

    `loss` is the weighted mean negative log-likelihood per token, in nats; `end_of_turn` the share
    of end-of-turn tokens that greedy decoding would choose; `weight` the sum of the loss weights.
    """

    loss: float
    end_of_turn: float
    weight: float


def compute_dtype(name: str) -> torch.dtype:
    """Return the dtype of a TrainConfig's `dtype`; "auto" depends on this worker's hardware."""
    if name != "auto":
        return torch.bfloat16 if name == "bfloat16" else torch.float32
    if torch.cuda.is_available():
        return torch.bfloat16
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def attention_implementation(name: str) -> str:
    """Return transformers' name of a TrainConfig's `attention`."""
    if name == "auto" and torch.cuda.is_available() and importlib.util.find_spec("flash_attn"):
        return "flash_attention_2"
    return PACKED_SDPA if name in ("auto", "sdpa") else name


def worker_device() -> torch.device:
    """Return this worker's GPU, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def probe_on_worker(config: TrainConfig, model_config: Any) -> AttentionMode:
    """Choose an exact attention mode on this worker's device and in its dtype.

    Call it before an Engine exists, since new models are partitioned from then on.

    Raises:
        UserError: no mode is exact.
    """
    return choose_attention_mode(
        model_config,
        candidates_of(config.attention, attention_implementation(config.attention)),
        device=worker_device(),
        # On a CPU in float32, as in the preflight: there two exact modes differ by 1e-5 at most.
        dtype=compute_dtype(config.dtype) if torch.cuda.is_available() else torch.float32,
        gradient_checkpointing=config.gradient_checkpointing,
    )


def device_memory() -> int | None:
    """Return the bytes of this worker's GPU; None without a GPU."""
    if not torch.cuda.is_available():
        return None
    return int(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)


class Engine:
    """Training engine of one worker; torch.distributed must be initialized, also for one worker.

    Args:
        config: options of the run.
        base: directory of the base model, with the end-of-turn token.
        model_config: its transformers configuration with the changes for training.
        vocabulary: number of tokens; ids from here on belong to no token.
        override: content of the file of `--deepspeed`.
        universal: prepare to `load` a universal checkpoint.
        attention: transformers' name of the implementation; None takes that of `config`.
    """

    def __init__(
        self,
        config: TrainConfig,
        base: str,
        *,
        model_config: Any = None,
        vocabulary: int | None = None,
        override: Mapping[str, Any] | None = None,
        universal: bool = False,
        attention: str | None = None,
    ) -> None:
        import deepspeed  # slow, and starts compilers
        from transformers.integrations import HfDeepSpeedConfig

        cuda = torch.cuda.is_available()
        if not cuda:
            load_shared_memory_op()
        # Joins the existing process group; without it zero.Init assumes a world size of 1.
        deepspeed.init_distributed(dist_backend="nccl" if cuda else "gloo")
        self.device = worker_device()
        self.dtype = compute_dtype(config.dtype)
        self._vocabulary = vocabulary
        self.settings = deepspeed_config(
            config,
            override,
            world_size=distributed.get_world_size(),
            bf16=self.dtype == torch.bfloat16,
            cuda=cuda,
            universal=universal,
        )
        quantizes = quantizes_base(config)
        partitions = config.zero_stage == 3 and not quantizes
        # transformers partitions weights while it loads them as long as this object is alive.
        self._partition_on_load = HfDeepSpeedConfig(self.settings) if partitions else None
        register_packed_sdpa()
        load = partial(load_quantized, device=self.device) if quantizes else load_model
        model = load(
            base,
            self.dtype,
            config=model_config,
            attention=attention or attention_implementation(config.attention),
        )
        # transformers recognizes a packed sequence only without a cache.
        model.config.use_cache = False
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        freeze(model, config.freeze)
        adapt(model, config)
        self._adapters_only = config.lora is not None
        self._peak_rates, groups = parameter_groups(model, config)
        self._decays = [group["weight_decay"] for group in groups]
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=model, optimizer=make_optimizer(groups, config), config=self.settings
        )
        distributed.barrier()
        _unlink_shared_memory()
        head = model.get_output_embeddings().weight
        # Under ZeRO-3 a parameter is flat.
        rows = vocabulary or getattr(head, "ds_shape", head.shape)[0]
        self._chunk: int | None = chunk_rows(rows)
        if config.max_tokens <= self._chunk or not has_plain_head(self._engine):
            self._chunk = None

    @property
    def model(self) -> Any:
        """The wrapped model; its parameters are partitioned under ZeRO-3."""
        return self._engine.module

    def step(self, packs: Iterable[Batch], scales: Sequence[float], *, rate: float) -> StepResult:
        """Run an optimizer step on this worker's packs; all workers need the same number of packs.

        The gradient is that of the sum over all packs of all workers of scale x sum(weight x nll),
        accumulated in float32. With every scale 1 / sum(all weights of the step) it does not
        depend on packing, number of packs and number of workers. `rate` is the learning rate as a
        share of its peak.
        """
        for group, peak in zip(self._optimizer.param_groups, self._peak_rates, strict=True):
            group["lr"] = rate * peak
        world_size = distributed.get_world_size()
        loss = torch.zeros((), device=self.device)
        self._engine.train()
        for position, (pack, scale) in enumerate(zip(packs, scales, strict=True)):
            self._engine.set_gradient_accumulation_boundary(position == len(scales) - 1)
            scaled = self._nll(pack) * scale
            loss += scaled.detach()
            # DeepSpeed averages over workers; the factor turns that into a sum.
            self._engine.backward(scaled * world_size)
            self._engine.step()
        distributed.all_reduce(loss)
        return StepResult(loss=loss.item(), grad_norm=float(self._engine.get_global_grad_norm()))

    @torch.no_grad()
    def evaluate(self, packs: Iterable[Batch], end_of_turn_id: int) -> Evaluation:
        """Evaluate exactly over all packs of all workers, which need the same number of packs."""
        sums = torch.zeros(4, dtype=torch.float64, device=self.device)
        self._engine.eval()
        for pack in packs:
            ends = (pack.labels == end_of_turn_id) & (pack.weights > 0)
            if self._in_chunks(pack):
                nll, chosen = chunked_evaluation(
                    self._engine, pack, end_of_turn_id, vocabulary=self._vocabulary
                )
            else:
                scores = logits(self._engine, pack, vocabulary=self._vocabulary)
                nll, chosen = weighted_nll(scores, pack), scores.argmax(-1) == end_of_turn_id
            sums += torch.stack(
                [
                    nll.double(),
                    pack.weights.sum().double(),
                    (ends & chosen).sum().double(),
                    ends.sum().double(),
                ]
            )
        distributed.all_reduce(sums)
        nll, weight, chosen_ends, all_ends = sums.tolist()
        return Evaluation(
            loss=nll / weight if weight else float("nan"),
            end_of_turn=chosen_ends / all_ends if all_ends else float("nan"),
            weight=weight,
        )

    @torch.no_grad()
    def next_ids(self, pack: Batch) -> list[int]:
        """Return the most likely token at each label position; all workers pass the same pack.

        All workers return the first worker's choice, so that they continue with the same ids.
        """
        self._engine.eval()
        scores = logits(self._engine, pack.to(self.device), vocabulary=self._vocabulary)
        ids = scores.argmax(-1)
        distributed.broadcast(ids, src=0)
        chosen: list[int] = ids.tolist()
        return chosen

    def save(self, directory: Path) -> None:
        """Write this worker's shard of parameters, optimizer and RNG state; all workers call it.

        Workers may use different directories; their contents together are the checkpoint.
        """
        directory.mkdir(parents=True, exist_ok=True)
        try:
            # The base is opened again when a run with adapters resumes.
            self._engine.save_checkpoint(
                str(directory), tag=_TAG, exclude_frozen_parameters=self._adapters_only
            )
        except RuntimeError as error:
            # torch's writer does not report the system's error.
            if "failed writing" in str(error) or "unexpected pos" in str(error):
                raise _write_error(directory) from error
            raise
        state = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state()
        torch.save(state, directory / _random_state())

    def load(self, directory: Path) -> None:
        """Load a checkpoint, either all workers' shards or a universal one; all workers call it."""
        ours = [{k: v for k, v in g.items() if k != "params"} for g in self._optimizer.param_groups]
        path, _ = self._engine.load_checkpoint(
            str(directory),
            tag=_TAG,
            load_lr_scheduler_states=False,
            load_module_strict=not self._adapters_only,
        )
        assert path is not None, f"DeepSpeed finds no checkpoint in {directory}"
        # DeepSpeed 0.19.8 gives all groups the options of a universal checkpoint's first one.
        for group, options in zip(self._optimizer.param_groups, ours, strict=True):
            group.update(options)
        # DeepSpeed 0.19.8 gives all sub-groups of a universal checkpoint one tensor that counts
        # AdamW's steps, which each of them would then increment.
        for state in self._optimizer.state.values():
            if torch.is_tensor(state.get("step")):
                state["step"] = state["step"].clone()
        # It also gives all groups the hyperparameters of the first one.
        for group, decay in zip(self._optimizer.param_groups, self._decays, strict=True):
            group["weight_decay"] = decay
        file = directory / _random_state()
        if file.exists():  # not with another number of workers, which has other RNG streams
            state = torch.load(file, weights_only=True)
            torch.set_rng_state(state["cpu"])
            if "cuda" in state and self.device.type == "cuda":
                torch.cuda.set_rng_state(state["cuda"])

    @torch.no_grad()
    def predict(self, pack: Batch) -> torch.Tensor:
        """Return logits at the pack's label positions, float32 on the CPU; all workers call it.

        All workers pass the same pack and get the same result.
        """
        self._engine.eval()
        return logits(self._engine, pack, vocabulary=self._vocabulary).float().cpu()

    def gathered(
        self, parameter: torch.nn.Parameter, *, changes: bool = False
    ) -> contextlib.AbstractContextManager[Any]:
        """Gather a partitioned parameter in the context; all workers must enter it.

        With `changes`, modifications are kept; all workers must make the same.
        """
        if not hasattr(parameter, "ds_id"):
            return contextlib.nullcontext()
        import deepspeed

        rank = 0 if changes else None
        return deepspeed.zero.GatheredParameters([parameter], modifier_rank=rank)

    @contextlib.contextmanager
    def unpartitioned_loading(self) -> Iterator[None]:
        """Let transformers load other models without partitioning, on this worker only.

        While ZeRO-3 is configured, transformers 5.19 partitions every model that it loads, with
        collective operations in which all workers take part.
        """
        from transformers.integrations import deepspeed as integration

        integration.unset_hf_deepspeed_config()
        try:
            yield
        finally:
            if self._partition_on_load is not None:
                integration.set_hf_deepspeed_config(self._partition_on_load)

    def _nll(self, pack: Batch) -> torch.Tensor:
        if self._in_chunks(pack):
            return chunked_nll(self._engine, pack, vocabulary=self._vocabulary)
        return weighted_nll(logits(self._engine, pack, vocabulary=self._vocabulary), pack)

    def _in_chunks(self, pack: Batch) -> bool:
        return self._chunk is not None and len(pack.labels) > self._chunk


def make_universal(checkpoint: Path, directory: Path) -> None:
    """Convert a checkpoint of all workers' shards for any number of workers and any ZeRO stage.

    The format is DeepSpeed's universal checkpoint (Lian et al., 2024). One worker per host calls
    it; the conversion runs in a subprocess, since DeepSpeed forks and prints.
    """
    command = [
        *(sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal"),
        *("--input_folder", str(checkpoint / _TAG)),
        *("--output_folder", str(directory / _TAG)),
        *("--num_extract_workers", "1", "--num_merge_workers", "1"),
        "--inject_missing_state",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"cannot convert {checkpoint}: {done.stderr.strip()[-2000:]}")
    complete_for_all_stages(directory / _TAG, version("deepspeed"))


def _write_error(directory: Path) -> OSError:
    """Return the system's error for a failed write of a checkpoint, found by another write."""
    probe = directory / "probe"
    try:
        with probe.open("wb") as file:
            file.write(bytes(_PROBE_BYTES))
            os.fsync(file.fileno())
    except OSError as error:
        return OSError(error.errno, f"cannot write a checkpoint: {error.strerror}")
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
    return OSError(errno.ENOSPC, "cannot write a checkpoint: the disk was full")


def _unlink_shared_memory() -> None:
    """Unlink DeepSpeed's shared-memory buffer of CPU workers, which all of them have open.

    DeepSpeed 0.19.8 leaves 69 MB per worker in /dev/shm, under a name that a later run with the
    same port would open.
    """
    address, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    who = f"{os.getuid()}_{address}_{port}_{distributed.get_rank()}"
    Path(f"/dev/shm/deepspeed_allreduce_buffer_{who}").unlink(missing_ok=True)  # noqa: S108


def _random_state() -> str:
    return f"random-state-{distributed.get_rank():05d}.pt"
