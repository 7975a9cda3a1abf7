"""LoRA adapters in transformers' continuous batching: several of them in one batch, with the base.

A batch is one row of tokens. A hook on each linear layer adds an adapter's change to the outputs of
the tokens of its requests only, as peft computes it: in float32, on the outputs of the base. Other
tokens are untouched, so a request without an adapter computes the same as without hooks.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import linear

from ochat_ray.errors import UserError
from ochat_ray.serve.adapter_files import AdapterRules, check_content, read_adapter
from ochat_ray.serve.engines.base import Adapter, RequestRefusedError
from ochat_ray.serve.engines.packed_linear import PackedLinear
from ochat_ray.serve.engines.prompt_scores import Span

logger = logging.getLogger(__name__)

KEPT_BYTES = 2**30
"""Size of the adapters that stay in memory; those of requests in progress always do."""

SALT_BITS = 128

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """Matrices of one layer, in float32: A, [rank, inputs], and B, [outputs, rank]."""

    a: torch.Tensor
    b: torch.Tensor
    scaling: float

    def of(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the change of the outputs for inputs of shape [tokens, inputs]."""
        return linear(linear(inputs.float(), self.a), self.b) * self.scaling


@dataclass(frozen=True, slots=True, eq=False)
class Lora:
    """Adapter in memory: its changes by the layer's name."""

    adapter: Adapter
    changes: Mapping[str, Change]
    size: int


class LoraLayers:
    """Adapters of one model, whose linear layers get the hooks that apply them."""

    def __init__(self, model: torch.nn.Module, rules: AdapterRules, device: torch.device) -> None:
        self._rules = rules
        self._device = device
        self._loaded: OrderedDict[str, Lora] = OrderedDict()
        self._lock = threading.Lock()
        self._loading = threading.Lock()
        self._rows: list[tuple[Lora, torch.Tensor | slice, list[Any]]] = []
        self._tokens = 0
        self._layers: set[str] = set()
        for name, module in model.named_modules():
            if type(module) in (torch.nn.Linear, PackedLinear):
                self._layers.add(name)
                module.register_forward_hook(partial(self._apply, name))

    def load(self, adapter: Adapter) -> Lora:
        """Return the adapter, from memory or its files; may be called on any thread.

        Raises:
            RequestRefusedError: Its files no longer have this content, or the model lacks a layer.
        """
        lora = self._kept(adapter)
        if lora is None:
            with self._loading:
                lora = self._kept(adapter) or self._read(adapter)
                self._keep(lora)
        return lora

    def _kept(self, adapter: Adapter) -> Lora | None:
        with self._lock:
            if adapter.digest in self._loaded:
                self._loaded.move_to_end(adapter.digest)
            return self._loaded.get(adapter.digest)

    def _keep(self, lora: Lora) -> None:
        """Keep an adapter in memory, and drop those that were used least recently if needed."""
        with self._lock:
            self._loaded[lora.adapter.digest] = lora
            while len(self._loaded) > 1 and sum(x.size for x in self._loaded.values()) > KEPT_BYTES:
                self._loaded.popitem(last=False)

    def begin(self, spans: Sequence[Span]) -> None:
        """Note which tokens of the next forward pass belong to which adapter."""
        self._rows = []
        by_lora: dict[int, list[Span]] = {}
        for span in spans:
            if span.sampler.lora is not None:
                by_lora.setdefault(id(span.sampler.lora), []).append(span)
        if not by_lora:
            return
        self._tokens = spans[-1].end
        for own in by_lora.values():
            adjoining = all(a.end == b.start for a, b in pairwise(own))
            rows: torch.Tensor | slice = slice(own[0].start, own[-1].end)
            if not adjoining:
                ranges = [torch.arange(span.start, span.end) for span in own]
                rows = torch.cat(ranges).to(self._device)
            samplers = [span.sampler for span in own]
            self._rows.append((own[0].sampler.lora, rows, samplers))

    def _apply(
        self, name: str, _module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> None:
        for lora, rows, samplers in self._rows:
            change = lora.changes.get(name)
            if change is None:
                continue
            try:
                if output.shape[:2] != (1, self._tokens):
                    raise RuntimeError(f"{name} computes other rows than the batch's tokens")
                output[0][rows] += change.of(inputs[0][0][rows])
            except Exception as error:  # an error here would end the requests of all users
                logger.exception("adapter %s failed", lora.adapter.name)
                for sampler in samplers:
                    sampler.error = error

    def _read(self, adapter: Adapter) -> Lora:
        try:
            content = read_adapter(Path(adapter.directory), self._rules)
            check_content(adapter.digest, content)
        except UserError as error:
            raise RequestRefusedError(f"the adapter {adapter.name!r} {error}", "model") from error
        missing = sorted(set(content.layers) - self._layers)
        if missing:
            raise RequestRefusedError(
                f"the adapter {adapter.name!r} is not served: {missing[0]} is not a linear layer "
                "of this engine",
                "model",
            )
        changes = {}
        for layer, matrices in content.layers.items():
            a, b = (
                torch.frombuffer(bytearray(data), dtype=_DTYPES[dtype])
                .view(shape)
                .to(self._device, torch.float32)
                for (dtype, data), shape in (
                    (matrices.a, matrices.shape_a),
                    (matrices.b, matrices.shape_b),
                )
            )
            changes[layer] = Change(a, b, matrices.scaling)
        size = sum(4 * (change.a.numel() + change.b.numel()) for change in changes.values())
        logger.info("adapter %s: loaded, digest %s", adapter.name, adapter.digest[:16])
        return Lora(adapter, changes, size)


def salted(token_ids: Sequence[int], lora: Lora | None) -> list[int]:
    """Return token ids by which the cache recognizes a prompt, for the base or an adapter.

    The cache hashes ids as 32-bit integers, so the 31st bit of the first 128 ids, all in the first
    page, holds 128 bits of the adapter's digest. Pages with keys and values of one adapter are thus
    never used for another.
    """
    ids = list(token_ids)
    if lora is None:
        return ids
    bits = int(lora.adapter.digest[: SALT_BITS // 4], 16)
    for index in range(min(SALT_BITS, len(ids))):
        ids[index] |= (bits >> index & 1) << 30
    return ids
