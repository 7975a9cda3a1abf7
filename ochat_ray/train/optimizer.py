"""Optimizer, its parameter groups, and frozen parameters."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

import torch

from ochat_ray.errors import UserError
from ochat_ray.models.base_model import embeddings
from ochat_ray.train.config import TrainConfig
from ochat_ray.train.meta_model import meta_model

_UNDECAYED = re.compile(r"(^|\.|_)(bias|A_log|D|dt_bias)$")
"""Names of parameters without weight decay that have two dimensions in some models: biases of
experts (GPT-OSS), and Mamba's parameters, which its authors train without it."""


def frozen_parameters(names: Collection[str], patterns: Sequence[str]) -> frozenset[str]:
    """Return the names in which one of the regular expressions matches anywhere.

    Raises:
        UserError: an expression matches no name, or nothing is left to train.
    """
    frozen: set[str] = set()
    for pattern in patterns:
        matched = {name for name in names if re.search(pattern, name)}
        if not matched:
            some = ", ".join(list(names)[:3])
            raise UserError(f"--freeze {pattern!r} matches no parameter; names are like {some}")
        frozen |= matched
    if names and len(frozen) == len(names):
        raise UserError("--freeze matches all parameters; nothing is left to train")
    return frozenset(frozen)


def frozen_by(config: TrainConfig, model_config: Any) -> frozenset[str]:
    """Return the names of a run's frozen parameters, from the model's configuration alone.

    Raises:
        UserError: a pattern does not fit the model, or another option has no effect with it.
    """
    if not config.freeze:
        return frozenset()
    model = meta_model(model_config)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    frozen = frozen_parameters(list(names.values()), config.freeze)
    if config.embedding_learning_rate is not None and all(
        names[id(weight)] in frozen for weight in embeddings(model)
    ):
        raise UserError(
            "--embedding-learning-rate has no effect: --freeze matches the embeddings; leave out "
            "one of them"
        )
    return frozen


def freeze(model: Any, patterns: Sequence[str]) -> None:
    """Freeze the parameters that the patterns match, in place."""
    names = [name for name, _ in model.named_parameters()]
    frozen = frozen_parameters(names, patterns)
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)


def parameter_groups(model: Any, config: TrainConfig) -> tuple[list[float], list[dict[str, Any]]]:
    """Return peak learning rates and parameter groups of the trained parameters.

    Embeddings are a separate group if they have their own learning rate; norms and biases are one
    if there is weight decay, since they have none.
    """
    separate = [] if config.embedding_learning_rate is None else embeddings(model)
    groups: dict[tuple[bool, float], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            embedded = any(parameter is weight for weight in separate)
            decay = config.weight_decay if _decays(name, parameter) else 0.0
            groups.setdefault((embedded, decay), []).append(parameter)
    peaks = {False: config.learning_rate, True: config.embedding_learning_rate}
    keys = sorted(groups)
    return (
        [peaks[embedded] for embedded, _ in keys],  # type: ignore[misc]
        [{"params": groups[key], "weight_decay": key[1]} for key in keys],
    )


def _decays(name: str, parameter: torch.nn.Parameter) -> bool:
    shape = getattr(parameter, "ds_shape", parameter.shape)  # under ZeRO-3 a parameter is flat
    return len(shape) > 1 and not _UNDECAYED.search(name)


def make_optimizer(groups: list[dict[str, Any]], config: TrainConfig) -> torch.optim.Optimizer:
    """Return PyTorch's AdamW, or DeepSpeed's if the optimizer's state is in host memory."""
    kind: Any = torch.optim.AdamW
    if config.offload_optimizer:
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        kind = DeepSpeedCPUAdam  # AdamW by default
    return kind(groups, betas=config.betas, eps=config.eps)
