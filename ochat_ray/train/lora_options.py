"""Options of `--lora`, such as r=16,alpha=32,targets=all-linear."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from ochat_ray.errors import UserError

if TYPE_CHECKING:
    from ochat_ray.train.config import TrainConfig

ALL_LINEAR = "all-linear"
NF4 = "nf4"
"""4-bit NormalFloat of QLoRA, the only value of `quantize`."""
_FORM = "expected KEY=VALUE pairs such as r=16,alpha=32,targets=all-linear"
_KEYS = ("r", "alpha", "targets", "rslora", "dora", "dropout", "quantize")


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraOptions:
    """Low-rank adapters of linear layers (Hu et al., 2021, arXiv:2106.09685).

    An adapter of rank `r` adds `scale` x B A to a layer's weight, where the scale is alpha / r, or
    alpha / sqrt(r) if `rslora` (Kalajdzievski, 2023, arXiv:2312.03732). `dora` also trains the norm
    of each row of the sum (Liu et al., 2024, arXiv:2402.09353). `targets` are names of modules as
    peft matches them (complete, or after a dot); empty for all linear layers but the output head.
    `quantize` is "nf4" if the frozen base is quantized (`train.quantization`), otherwise None.
    """

    r: int
    alpha: float
    targets: tuple[str, ...] = ()
    rslora: bool = False
    dora: bool = False
    quantize: str | None = None

    @classmethod
    @cache  # the options are asked for in many places
    def parse(cls, text: str) -> LoraOptions:
        """Parse the value of `--lora`; alpha is 2 x r by default, as peft's users have it.

        Raises:
            UserError: a key or value is unknown, or is not supported.
        """
        given: dict[str, str] = {}
        for part in text.split(","):
            key, equals, value = (piece.strip() for piece in part.partition("="))
            if not equals or not key or not value:
                raise UserError(f"--lora {text!r}: {part!r} is not a pair; {_FORM}")
            if key not in _KEYS:
                raise UserError(f"--lora: unknown key {key!r}; the keys are {', '.join(_KEYS)}")
            if key in given:
                raise UserError(f"--lora: {key} is given twice; give it once")
            given[key] = value
        if "r" not in given:
            raise UserError(f"--lora {text!r} lacks the rank r; {_FORM}")
        _check_unsupported(given)
        r = _number("r", given["r"])
        if r < 1 or not r.is_integer():
            raise UserError(f"--lora: r must be a positive integer, not {given['r']}")
        alpha = _number("alpha", given["alpha"]) if "alpha" in given else 2 * r
        if alpha <= 0:
            raise UserError(f"--lora: alpha must be a positive number, not {given['alpha']}")
        return cls(
            r=int(r),
            alpha=int(alpha) if alpha.is_integer() else alpha,
            targets=_targets(given.get("targets", ALL_LINEAR)),
            rslora=_flag("rslora", given.get("rslora", "false")),
            dora=_flag("dora", given.get("dora", "false")),
            quantize=given.get("quantize"),
        )

    def __str__(self) -> str:
        """Return the options in a normal form, which is part of a run's identity."""
        targets = "+".join(self.targets) or ALL_LINEAR
        flags = "".join(f",{name}=true" for name in ("rslora", "dora") if getattr(self, name))
        quantize = f",quantize={self.quantize}" if self.quantize else ""
        return f"r={self.r},alpha={self.alpha},targets={targets}{flags}{quantize}"


def lora_of(config: TrainConfig) -> LoraOptions | None:
    """Return the options of a run's `--lora`; None for full fine-tuning."""
    return None if config.lora is None else LoraOptions.parse(config.lora)


def quantizes_base(config: TrainConfig) -> bool:
    """Return whether a run quantizes its frozen base."""
    options = lora_of(config)
    return options is not None and options.quantize is not None


def check_lora(config: TrainConfig) -> None:
    """Check `--lora` and `--merge` against the options that they exclude.

    Raises:
        UserError: a value is invalid, or an option has no effect beside it.
    """
    options = lora_of(config)
    if options is None:
        if config.merge:
            raise UserError("--merge has no effect without --lora; leave it out")
        return
    if config.freeze:
        raise UserError(
            "--freeze has no effect with --lora, which freezes the whole base model; choose the "
            "adapted layers with --lora ...,targets=NAME+NAME"
        )
    if config.embedding_learning_rate is not None:
        raise UserError(
            "--embedding-learning-rate has no effect with --lora, which trains no embeddings; "
            "leave it out"
        )
    if options.quantize:
        _check_quantize(config, options)
    if config.rope_scaling is not None and not config.merge:
        raise UserError(
            "--rope-scaling changes the base's configuration, which an adapter does not contain; "
            "give --merge to export the whole model"
        )


def check_bitsandbytes(config: TrainConfig) -> None:
    """Raise a UserError if a run quantizes its base and this host has no bitsandbytes."""
    if quantizes_base(config) and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            "--lora: quantize=nf4 needs bitsandbytes, which is not installed; install it on every "
            "node with pip install 'ochat-ray[qlora]'"
        )


def _check_quantize(config: TrainConfig, options: LoraOptions) -> None:
    check_bitsandbytes(config)
    if config.offload_parameters:
        raise UserError(
            "--offload-parameters does not work with --lora quantize=nf4; leave one of them out"
        )
    if options.dora and config.zero_stage == 3:
        # peft 0.21 replaces a quantized weight on a CPU by a copy that ZeRO-3 does not know
        # (`dequantize_module_weight`); on a GPU it was not tried.
        raise UserError(
            "--lora: dora=true with quantize=nf4 does not work with ZeRO-3; give --zero-stage 2"
        )


def _check_unsupported(given: dict[str, str]) -> None:
    if "dropout" in given and _number("dropout", given["dropout"]) != 0:
        raise UserError(
            f"--lora: dropout={given['dropout']} is not supported: with dropout, loss and gradient "
            "would depend on packing and number of workers; leave it out"
        )
    if given.get("quantize", NF4) != NF4:
        raise UserError(
            f"--lora: quantize={given['quantize']} is not supported; give quantize=nf4, or leave "
            "it out for a base in the dtype of the training"
        )


def _number(key: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"--lora: {key} must be a number, not {text}")
    return number


def _flag(key: str, text: str) -> bool:
    if text not in ("true", "false"):
        raise UserError(f"--lora: {key} must be true or false, not {text}")
    return text == "true"


def _targets(text: str) -> tuple[str, ...]:
    names = text.split("+")
    if names == [ALL_LINEAR]:
        return ()
    if "" in names or ALL_LINEAR in names or len(set(names)) < len(names):
        raise UserError(
            f"--lora: targets={text} must be all-linear, or different names of layers joined by +, "
            "such as q_proj+v_proj"
        )
    return tuple(sorted(names))
