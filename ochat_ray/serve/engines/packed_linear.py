"""Linear layers with weights in the memory layout that CPU kernels read fastest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

ROWS = 16
"""Tokens per forward pass for which the weight layout is optimized; any number works."""

SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers with the same input, called one after the other, by their names in common models."""


class PackedLinears:
    """Several `torch.nn.Linear` layers with the same input, as one product of bfloat16 matrices.

    The weight is reordered once instead of on every call. The two operators are those that
    PyTorch's compiler substitutes for a linear layer. Small matrix products cost more in waking
    threads than in arithmetic, so one is faster than three.
    """

    def __init__(self, linears: Sequence[torch.nn.Linear]) -> None:
        weight = torch.cat([linear.weight.detach() for linear in linears])
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
        biases = [linear.bias.detach() for linear in linears if linear.bias is not None]
        self._bias = torch.cat(biases) if biases else None
        self._widths = [linear.out_features for linear in linears]
        self._inputs: torch.Tensor | None = None
        self._outputs: list[torch.Tensor | None] = []

    def output(self, which: int, inputs: torch.Tensor) -> torch.Tensor:
        """Return the output of layer number `which`; the others' outputs are kept until requested.

        This is correct because each layer is called once per input, as in a forward pass.
        """
        if inputs is not self._inputs or self._outputs[which] is None:
            product = torch.ops.mkldnn._linear_pointwise(
                inputs, self._weight, self._bias, "none", [], ""
            )
            self._inputs, self._outputs = inputs, list(product.split(self._widths, dim=-1))
        output = self._outputs[which]
        assert output is not None
        self._outputs[which] = None
        if not any(part is not None for part in self._outputs):
            self._inputs = None
        return output


class PackedLinear(torch.nn.Module):
    """Replacement module for one layer of `PackedLinears`."""

    def __init__(self, packed: PackedLinears, which: int) -> None:
        super().__init__()
        self._packed = packed
        self._which = which

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Compute the same result as `torch.nn.Linear.forward`."""
        return self._packed.output(self._which, inputs)


def pack_linears(model: Any) -> int:
    """Replace all bfloat16 linear layers if the CPU computes in bfloat16; return their number.

    In float32, PyTorch's matrix library gains nothing, and the plain layers stay. For inference
    only, by one thread at a time.
    """
    if not (torch.backends.mkldnn.is_available() and torch.cpu._is_avx512_bf16_supported()):
        return 0
    count = 0
    for parent in list(model.modules()):
        found = {
            name: child
            for name, child in parent.named_children()
            if type(child) is torch.nn.Linear and child.weight.dtype == torch.bfloat16
        }
        groups = [names for names in SIBLINGS if _alike([found.get(name) for name in names])]
        together = {name for names in groups for name in names}
        for names in [*groups, *((name,) for name in found if name not in together)]:
            packed = PackedLinears([found[name] for name in names])
            for which, name in enumerate(names):
                setattr(parent, name, PackedLinear(packed, which))
                count += 1
    return count


def _alike(linears: Sequence[torch.nn.Linear | None]) -> bool:
    kinds = {linear and (linear.in_features, linear.bias is None) for linear in linears}
    return len(kinds) == 1 and None not in kinds
