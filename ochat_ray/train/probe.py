"""Probe at the start of a run that a model is trained exactly.

Exact means that conversations of a pack do not attend to each other, and that attention equals the
model's own. A tiny random model of the same class with the same kinds of layers (`tiny.py`)
computes logits and gradients of two conversations twice: as in training (`forward.logits`, gradient
checkpointing, the run's device, dtype and attention), and each conversation alone with
transformers' "eager" attention in float32, by plain calls that share no code with `forward.py`.

The tiny model stands in for the real one, whose parameters ZeRO-3 partitions. Errors (in windows,
soft-capping, sinks, recurrent state, positions) depend on the code and the configuration's
switches, not on weights and sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ochat_ray.errors import UserError, first_line
from ochat_ray.train.batch import make_batch
from ochat_ray.train.forward import PACKED_SDPA, logits, register_packed_sdpa
from ochat_ray.train.tiny import layer_kinds, tiny_config
from ochat_ray.train.trial import build, fixed_seed, layer_outputs, rescale_weights

_LENGTHS = (27, 22)
"""Tokens of the two conversations: more than `tiny.WINDOW`, and not a multiple of it."""

_EXACT = (1e-3, 1e-2)
"""Tolerances of logits and gradients in float32. Rounding causes errors of 1e-5, and a lost or
leaked part 0.1 or more (tests/train/test_probe.py)."""
_NOISE = 3.0
"""Tolerance in another dtype, as a multiple of the errors of the model's own eager attention in
it, which are 1e-2 in bfloat16, but 1e-1 with a state space."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionMode:
    """Attention implementation and packing that the probe found exact.

    `attention` is transformers' name of the implementation. Conversations of a pack share a forward
    pass if `packed`; otherwise each has its own. `because` is the reason why an earlier candidate
    was not chosen, or empty. The errors of logits and gradients are relative to the reference.
    """

    attention: str
    packed: bool
    because: str = ""
    logits_error: float
    gradient_error: float

    @property
    def notice(self) -> str:
        """Line for the user if this is not the first candidate, or empty."""
        if not self.because:
            return ""
        if self.packed:
            return f"{self.because}; attention {self.attention!r} is used"
        return f"{self.because}; each conversation gets its own forward pass"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Result:
    """Logits at all positions except each conversation's last, and gradients by parameter."""

    logits: torch.Tensor
    gradients: dict[str, torch.Tensor]


class _NotExactError(Exception):
    """Error for a candidate that differs from the reference; its message is the reason."""


def choose_attention_mode(
    config: Any,
    candidates: Sequence[tuple[str, bool]],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    gradient_checkpointing: bool = True,
) -> AttentionMode:
    """Return the first of `candidates`, as (attention, packed), that is exact.

    Args:
        config: the base model's transformers configuration, with the changes for training.
        candidates: candidates of `candidates_of`, best first.
        device: device of the training.
        dtype: dtype of the training.
        gradient_checkpointing: whether training uses gradient checkpointing.

    Raises:
        UserError: none is exact, or no small model of this configuration can be created.
    """
    family = _family(config)
    register_packed_sdpa()
    with fixed_seed():
        try:
            probe = _Probe(config, torch.device(device), dtype, gradient_checkpointing)
        except UserError:
            raise
        except Exception as error:  # whatever a model's code raises
            raise UserError(
                f"cannot test a small {family} model, which is required before training: "
                f"{_line(error)}; choose another base (docs/training.md, Model families)"
            ) from error
        because: list[str] = []
        for attention, packed in candidates:
            try:
                errors = probe.errors(attention, packed=packed)
            except _NotExactError as error:
                because.append(str(error))
                continue
            reasons = because[:1]
            if not packed:
                leaks = [reason for reason in because if "see each other" in reason]
                reasons = [*leaks, f"the attention of a {family} model takes no packs"]
            return AttentionMode(
                attention=attention,
                packed=packed,
                because=reasons[0] if reasons else "",
                logits_error=errors[0],
                gradient_error=errors[1],
            )
    raise UserError(
        f"a {family} model cannot be trained exactly here: {'; '.join(dict.fromkeys(because))}; "
        "use --attention auto, or another base (docs/training.md, Model families)"
    )


def candidates_of(attention: str, implementation: str) -> list[tuple[str, bool]]:
    """Return the candidates for a TrainConfig's `attention`; the first is `implementation`.

    transformers' own "sdpa" needs a mask of shape (tokens, tokens) for a pack; a forward pass per
    conversation means smaller matrix products and, under ZeRO-3, an additional all-gather each.
    """
    if attention not in ("auto", "sdpa"):
        return [(implementation, True), (implementation, False)]
    packed = dict.fromkeys([implementation, PACKED_SDPA, "sdpa"])
    alone = dict.fromkeys([implementation, "sdpa"] + (["eager"] if attention == "auto" else []))
    return [(name, True) for name in packed] + [
        (name, False) for name in alone if name != PACKED_SDPA
    ]


class _Probe:
    """Tiny model, two conversations, and the reference's logits and gradients."""

    def __init__(
        self, config: Any, device: torch.device, dtype: torch.dtype, gradient_checkpointing: bool
    ) -> None:
        self._family = _family(config)
        self._device, self._dtype = device, dtype
        self._checkpointing = gradient_checkpointing
        self._config = tiny_config(config)
        try:
            self._reference = build(self._config, "eager", torch.float32)
        except ValueError:  # Zamba's layers share weights with another of their kind
            self._config = tiny_config(config, of_each=2)
            self._reference = build(self._config, "eager", torch.float32)
        if gradient_checkpointing and not self._reference.supports_gradient_checkpointing:
            raise UserError(
                f"a {self._family} model has no gradient checkpointing in transformers; give "
                "--no-gradient-checkpointing"
            )
        rescale_weights(self._reference)
        with torch.no_grad():
            for parameter in self._reference.parameters():  # exactly representable in the dtype
                parameter.copy_(parameter.to(dtype))
        self._reference.to(device)
        self._kinds = layer_kinds(self._config)
        vocabulary = self._reference.get_input_embeddings().weight.shape[0]
        self._ids = [torch.randint(3, vocabulary, (1, n)).to(device) for n in _LENGTHS]
        self._check_causal()
        self._expected = self._run(self._reference, self._each_alone(self._reference))
        self._noise: tuple[float, float] | None = None

    def errors(self, attention: str, *, packed: bool) -> tuple[float, float]:
        """Return the relative errors of logits and gradients, in the run's dtype.

        They are also checked in float32, if the attention supports it, since rounding hides
        nothing there.

        Raises:
            _NotExactError: they exceed the tolerance, or the model cannot run in this mode.
        """
        own = [] if self._dtype == torch.float32 else [self._dtype]
        errors = (0.0, 0.0)
        for dtype in own if "flash" in attention else [torch.float32, *own]:
            errors = self._errors(attention, packed, dtype)
        return errors

    def _errors(self, attention: str, packed: bool, dtype: torch.dtype) -> tuple[float, float]:
        try:
            model = self._copy(attention, dtype).train()
            if self._checkpointing:
                model.gradient_checkpointing_enable({"use_reentrant": False})
            found = self._run(model, self._as_trained(model, self._ids, packed=packed))
        except Exception as error:  # whatever a model's code raises
            raise _NotExactError(f"{_named(attention, packed)}: {_line(error)}") from error
        errors, tolerances = self._compare(found), self._tolerances(dtype)
        if not (errors[0] <= tolerances[0] and errors[1] <= tolerances[1]):  # nan, too
            raise _NotExactError(self._difference(model, attention, packed, errors, tolerances[0]))
        return errors

    def _tolerances(self, dtype: torch.dtype) -> tuple[float, float]:
        if dtype == torch.float32:
            return _EXACT
        if self._noise is None:
            model = self._copy("eager", dtype)
            self._noise = self._compare(self._run(model, self._each_alone(model)))
        return (_NOISE * self._noise[0], _NOISE * self._noise[1])

    def _copy(self, attention: str, dtype: torch.dtype) -> Any:
        model = build(self._config, attention, dtype)
        model.load_state_dict(self._reference.state_dict())
        return model.to(self._device)

    def _each_alone(self, model: Any) -> torch.Tensor:
        """Return the logits of plain calls, at all positions except each conversation's last."""
        return torch.cat([self._alone(model, ids)[:-1] for ids in self._ids])

    def _alone(self, model: Any, ids: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = model(input_ids=ids, use_cache=False).logits[0]
        return result

    def _as_trained(
        self, model: Any, conversations: list[torch.Tensor], *, packed: bool
    ) -> torch.Tensor:
        rows = [(ids[0].cpu().numpy(), np.ones(ids.shape[1], np.float32)) for ids in conversations]
        batches = [make_batch(rows)] if packed else [make_batch([row]) for row in rows]
        return torch.cat([logits(model, batch.to(self._device)) for batch in batches])

    def _run(self, model: Any, result: torch.Tensor) -> _Result:
        generator = torch.Generator().manual_seed(1)
        factors = torch.randn(result.shape, generator=generator).to(self._device)
        model.zero_grad()
        (result.float() * factors).sum().backward()
        return _Result(
            logits=result.detach().float(),
            gradients={
                name: torch.zeros_like(p, dtype=torch.float32) if p.grad is None else p.grad.float()
                for name, p in model.named_parameters()
            },
        )

    def _compare(self, found: _Result) -> tuple[float, float]:
        expected = self._expected
        norms = {name: gradient.norm() for name, gradient in expected.gradients.items()}
        # A gradient that is much smaller than the others consists of rounding errors.
        least = 0.01 * torch.stack(list(norms.values())).square().mean().sqrt()
        return (
            _relative(found.logits, expected.logits),
            max(
                float((found.gradients[name] - gradient).norm() / (norms[name] + least))
                for name, gradient in expected.gradients.items()
            ),
        )

    def _difference(
        self,
        model: Any,
        attention: str,
        packed: bool,
        errors: tuple[float, float],
        tolerance: float,
    ) -> str:
        """Return a description of the difference and of the kind of layer where it starts."""
        layer = self._first_layer(model, packed, tolerance)
        where = "" if layer is None else f" (layers: {layer})"
        if packed and self._leaks(model, tolerance):
            return f"packed conversations of a {self._family} model see each other{where}"
        return (
            f"{_named(attention, packed)} is not a {self._family} model's own{where}: logits "
            f"differ by {errors[0]:.1e}, gradients by {errors[1]:.1e}"
        )

    @torch.no_grad()
    def _leaks(self, model: Any, tolerance: float) -> bool:
        """Return whether the second conversation's logits depend on the first one."""
        other = (self._ids[0] - 3 + 1) % (int(self._ids[0].max()) - 3 + 1) + 3
        after = _LENGTHS[0] - 1
        one, two = (
            self._as_trained(model, [first, self._ids[1]], packed=True)[after:].float()
            for first in (self._ids[0], other)
        )
        return _relative(two, one) > tolerance

    @torch.no_grad()
    def _first_layer(self, model: Any, packed: bool, tolerance: float) -> str | None:
        """Return the kind of the first layer whose output differs from the reference."""
        with layer_outputs(self._reference) as expected:
            self._each_alone(self._reference)
        with layer_outputs(model) as found:
            self._as_trained(model, self._ids, packed=packed)
        for place, (name, parts) in enumerate(expected.items()):
            own = found.get(name, [])
            if not own or sum(p.shape[1] for p in own) != sum(p.shape[1] for p in parts):
                return None
            if _relative(torch.cat(own, 1), torch.cat(parts, 1)) > tolerance:
                if place < len(self._kinds):
                    return self._kinds[place]
                return type(model.get_submodule(name)).__name__
        return None

    @torch.no_grad()
    def _check_causal(self) -> None:
        self._reference.eval()
        ids = self._ids[0].clone()
        before = self._alone(self._reference, ids)[:-1]
        ids[0, -1] = 3 + (ids[0, -1] - 3 + 1) % 8
        if _relative(self._alone(self._reference, ids)[:-1], before) > _EXACT[0]:
            raise UserError(
                f"a {self._family} model with this configuration attends to later tokens; "
                "it is not a causal language model"
            )


def _relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def _family(config: Any) -> str:
    return type(config).__name__.removesuffix("Config")


def _named(attention: str, packed: bool) -> str:
    return f"attention {attention!r} on {'packs' if packed else 'single conversations'}"


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error, 200)}"
