"""A DeepSpeed engine around a causal language model: one optimizer step, one evaluation."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed

from ochat_ray.train.base_model import embeddings, load_model
from ochat_ray.train.batch import Batch, weighted_nll
from ochat_ray.train.config import TrainConfig
from ochat_ray.train.deepspeed_config import deepspeed_config


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """One optimizer step over all workers: mean loss a weighted token, and the gradient's norm."""

    loss: float
    grad_norm: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Held-out figures over all workers.

    `loss` is the mean negative log-likelihood a weighted token, in nats; `end_of_turn` the share
    of end-of-turn tokens that the model would have chosen.
    """

    loss: float
    end_of_turn: float
    weight: float


def compute_dtype(name: str) -> torch.dtype:
    """The dtype of a TrainConfig's `dtype`; "auto" asks the hardware of this worker."""
    if name != "auto":
        return torch.bfloat16 if name == "bfloat16" else torch.float32
    if torch.cuda.is_available():
        return torch.bfloat16
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


class Engine:
    """Needs torch.distributed to be up; with world size 1 it is a group of one."""

    def __init__(self, config: TrainConfig, base: str) -> None:
        import deepspeed  # slow, and starts compilers
        from transformers.integrations import HfDeepSpeedConfig

        cuda = torch.cuda.is_available()
        # Joins the group that is up; without it zero.Init believes in a world of one.
        deepspeed.init_distributed(dist_backend="nccl" if cuda else "gloo")
        self.device = (
            torch.device("cuda", torch.cuda.current_device()) if cuda else (torch.device("cpu"))
        )
        dtype = compute_dtype(config.dtype)
        settings = deepspeed_config(
            config,
            world_size=distributed.get_world_size(),
            bf16=dtype == torch.bfloat16,
            cuda=cuda,
        )
        # transformers partitions weights while it loads them as long as this object is alive.
        self._partition_on_load = HfDeepSpeedConfig(settings) if config.zero_stage == 3 else None
        model = load_model(base, dtype)
        # A packed sequence is recognised only without a cache, and dropout is not for fine-tuning.
        model.config.use_cache = False
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        optimizer = torch.optim.AdamW(
            _parameter_groups(model, config),
            betas=config.betas,
            eps=config.eps,
            weight_decay=config.weight_decay,
        )
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=settings
        )

    @property
    def model(self) -> Any:
        """The model inside; under ZeRO-3 its parameters are partitioned."""
        return self._engine.module

    def step(self, packs: Sequence[Batch], *, weight: float, rate: float) -> StepResult:
        """One optimizer step on this worker's packs; all workers have the same number of them.

        `rate` multiplies the learning rates that the engine was opened with.

        The gradient is that of sum(weight x nll) / `weight`, where both are over all packs of all
        workers. So it is the same for every packing, number of packs and number of workers.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group["peak_lr"]
        world_size = distributed.get_world_size()
        nll_sum = torch.zeros((), device=self.device)
        self._engine.train()
        for position, pack in enumerate(packs):
            self._engine.set_gradient_accumulation_boundary(position == len(packs) - 1)
            nll = weighted_nll(self._logits(pack), pack)
            nll_sum += nll.detach()
            # DeepSpeed averages over workers; this makes it a sum.
            self._engine.backward(nll * (world_size / weight))
            self._engine.step()
        distributed.all_reduce(nll_sum)
        return StepResult(
            loss=nll_sum.item() / weight, grad_norm=float(self._engine.get_global_grad_norm())
        )

    @torch.no_grad()
    def evaluate(self, packs: Sequence[Batch], end_of_turn_id: int) -> Evaluation:
        """Exact figures over all packs of all workers, which have the same number of packs."""
        sums = torch.zeros(4, dtype=torch.float64, device=self.device)
        self._engine.eval()
        for pack in packs:
            logits = self._logits(pack)
            ends = (pack.targets == end_of_turn_id) & (pack.weights > 0)
            chosen = logits.argmax(-1) == end_of_turn_id
            sums += torch.stack(
                [
                    weighted_nll(logits, pack).double(),
                    pack.weights.sum().double(),
                    (ends & chosen).sum().double(),
                    ends.sum().double(),
                ]
            )
        distributed.all_reduce(sums)
        nll, weight, chosen_ends, all_ends = sums.tolist()
        return Evaluation(
            loss=nll / weight,
            end_of_turn=chosen_ends / all_ends if all_ends else float("nan"),
            weight=weight,
        )

    def whole(self, parameter: torch.nn.Parameter) -> contextlib.AbstractContextManager[Any]:
        """A context in which the parameter is whole; every worker must enter it."""
        if not hasattr(parameter, "ds_id"):
            return contextlib.nullcontext()
        import deepspeed

        return deepspeed.zero.GatheredParameters([parameter])

    def _logits(self, pack: Batch) -> torch.Tensor:
        return self._engine(
            input_ids=pack.input_ids, position_ids=pack.position_ids, use_cache=False
        ).logits


def _parameter_groups(model: Any, config: TrainConfig) -> list[dict[str, Any]]:
    """Embeddings and the rest, each with its peak learning rate; tied embeddings are one."""
    embedded = embeddings(model)
    rest = [p for p in model.parameters() if not any(p is e for e in embedded)]
    rates = {
        "rest": config.learning_rate,
        "embeddings": config.embedding_learning_rate or config.learning_rate,
    }
    return [
        {"params": rest, "lr": rates["rest"], "peak_lr": rates["rest"]},
        {
            "params": embedded,
            "lr": rates["embeddings"],
            "peak_lr": rates["embeddings"],
        },
    ]
