"""Linear layers whose weights lie as a CPU wants to read them."""

from __future__ import annotations

from typing import Any

import torch

ROWS = 16
"""Tokens in a forward pass that the order of the weights is chosen for; any number may come."""


class PackedLinear(torch.nn.Module):
    """`torch.nn.Linear` for inference in bfloat16, its weight reordered once instead of every call.

    The two operators are those that PyTorch's own compiler puts in a linear layer's place.
    """

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), ROWS)
        self._bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """As `torch.nn.Linear.forward`."""
        return torch.ops.mkldnn._linear_pointwise(inputs, self._weight, self._bias, "none", [], "")


def pack_linears(model: Any) -> int:
    """Replace every bfloat16 linear layer of a model on a CPU that computes in it; how many.

    In float32 PyTorch's matrix library gains nothing by it, and the plain layers stay.
    """
    if not (torch.backends.mkldnn.is_available() and torch.cpu._is_avx512_bf16_supported()):
        return 0
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is torch.nn.Linear and child.weight.dtype == torch.bfloat16
    ]
    for parent, name, child in found:
        setattr(parent, name, PackedLinear(child))
    return len(found)
