"""A model on torch's meta device: its parameters, and those that a token is multiplied with."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

_LAYER = re.compile(r"\.(\d+)\.")
_LAST = 1 << 60


@dataclass(frozen=True, kw_only=True, slots=True)
class Matrix:
    """A parameter of matrix multiplications.

    `size` counts its elements and `active` those that one token is multiplied with: fewer where it
    holds the matrices of many experts (`routed`). `position` orders the model's parameters as a
    forward pass uses them.
    """

    name: str
    size: int
    active: int
    routed: bool
    position: int


@dataclass(frozen=True, kw_only=True, slots=True)
class FrozenWork:
    """Work that frozen parameters save.

    `operations` per token, `attention_layers` whose attention has no backward pass, and whether
    the output head is frozen.
    """

    operations: int
    attention_layers: int
    head: bool


def meta_model(config: Any) -> Any:
    """The causal language model of a transformers configuration, without memory for weights."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    return model


def matrices(model: Any) -> list[Matrix]:
    """The model's parameters of matrix multiplications, tied ones once.

    Of a model that sees images or hears, too, those that text passes through.
    """
    from torch import nn

    names = {id(parameter): name for name, parameter in model.named_parameters()}
    order = {name: position for position, name in enumerate(names.values())}
    head = model.get_output_embeddings().weight
    order[names[id(head)]] = _LAST  # also where it is the input embedding
    is_text = model.config.get_text_config(decoder=True) is model.config
    for_text = {id(p) for p in (model if is_text else model.get_decoder()).parameters()} | {
        id(head)
    }
    found: dict[int, Matrix] = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            continue
        for own, weight in module.named_parameters(recurse=False):
            if weight.ndim < 2 or own.endswith("bias") or id(weight) not in for_text:
                continue
            active = _routed(model, path, module, weight)
            name = names[id(weight)]
            found[id(weight)] = Matrix(
                name=name,
                size=weight.numel(),
                active=weight.numel() if active is None else active,
                routed=active is not None,
                position=order[name],
            )
    return list(found.values())


def _routed(model: Any, path: str, module: nn.Module, weight: Any) -> int | None:
    """Elements per token of experts' matrices (experts, rows, columns); None for other weights.

    transformers 5 keeps a layer's experts in one tensor; the number that a token is routed to is
    an attribute `top_k` of the router, which is in the same layer.
    """
    from torch.nn.modules.conv import _ConvNd

    if weight.ndim != 3 or isinstance(module, _ConvNd):
        return None
    chosen = next(_top_k(model, path), None)
    if not chosen or chosen >= weight.shape[0]:
        return None
    return chosen * weight[0].numel()


def _top_k(model: Any, path: str) -> Iterator[int]:
    """The routers' `top_k` near a module: its own, then those of the modules around it."""
    while "." in path:
        for module in model.get_submodule(path).modules():
            value = vars(module).get("top_k")
            if isinstance(value, int):
                yield value
        path = path.rpartition(".")[0]


def feed_forward_width(found: Collection[Matrix], hidden: int, *, gated: bool) -> int | None:
    """The widest feed-forward part of a mixture of experts, over a token's active experts.

    None for a model without experts.
    """
    by_layer: dict[str, int] = defaultdict(int)
    for matrix in found:
        if matrix.routed or "shared_expert" in matrix.name or "shared_mlp" in matrix.name:
            by_layer[layer_of(matrix.name) or ""] += matrix.active
    if not any(matrix.routed for matrix in found):
        return None
    return max(by_layer.values()) // (hidden * (3 if gated else 2))


def frozen_work(
    model: Any, found: Collection[Matrix], frozen: Collection[str], attention: Collection[int]
) -> FrozenWork:
    """The work that is saved where the parameters of these names are not trained.

    A frozen matrix has no gradient (2 operations per element); what comes before the first trained
    parameter has no gradient of its inputs either (2 more, and attention's backward pass).
    `attention` are the layers that have attention.
    """
    if not frozen:
        return FrozenWork(operations=0, attention_layers=0, head=False)
    names = [name for name, _ in model.named_parameters()]
    first = next((i for i, name in enumerate(names) if name not in frozen), _LAST)
    operations = head = 0
    for matrix in found:
        if matrix.name in frozen:
            operations += (2 if matrix.position > first else 4) * matrix.active
            head += matrix.position == _LAST
    last = {layer_of(name): position for position, name in enumerate(names)}
    skipped = sum(last.get(str(layer), _LAST) < first for layer in attention)
    return FrozenWork(operations=operations, attention_layers=skipped, head=bool(head))


def attention_layers(text_config: Any) -> list[int]:
    """Indices of the layers that have softmax attention; hybrid models name their layers' kinds."""
    if not getattr(text_config, "num_attention_heads", None):  # Mamba, RWKV
        return []
    kinds = getattr(text_config, "layer_types", None) or getattr(
        text_config, "layers_block_type", None
    )
    if not kinds:
        return list(range(text_config.num_hidden_layers))
    return [
        i
        for i, kind in enumerate(kinds)
        if ("attention" in kind and "linear" not in kind and "lightning" not in kind)
        or kind == "hybrid"
    ]


def layer_of(name: str) -> str | None:
    """The number of a parameter's layer, as in "model.layers.3.mlp.weight"; None outside."""
    match = _LAYER.search(name)
    return match[1] if match else None
