"""Models on torch's meta device, and the parameters that each token is multiplied with."""

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

    `size` is the number of its elements, and `active` of those that one token is multiplied with,
    which are fewer if it holds the matrices of many experts (`routed`). `position` is its place in
    the order in which a forward pass uses the parameters.
    """

    name: str
    size: int
    active: int
    routed: bool
    position: int


@dataclass(frozen=True, kw_only=True, slots=True)
class FrozenWork:
    """FLOPs that frozen parameters save.

    `operations` are FLOPs per token; `attention_layers` is the number of layers whose attention
    has no backward pass; `head` is whether the output head is frozen.
    """

    operations: int
    attention_layers: int
    head: bool


def meta_model(config: Any) -> Any:
    """Return the causal language model of a transformers configuration on the meta device."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    return model


def matrices(model: Any) -> list[Matrix]:
    """Return the model's parameters of matrix multiplications, tied ones once.

    For a model that also takes images or audio, only the parameters that text passes through.
    """
    from torch import nn

    names = {id(parameter): name for name, parameter in model.named_parameters()}
    order = {name: position for position, name in enumerate(names.values())}
    head = model.get_output_embeddings().weight
    order[names[id(head)]] = _LAST  # also if it is the input embedding
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
    """Return the elements per token of experts' matrices; None for other weights.

    transformers 5 keeps a layer's experts in one tensor of shape (experts, rows, columns). The
    number of experts per token is the attribute `top_k` of the router, in the same layer.
    """
    from torch.nn.modules.conv import _ConvNd  # torch 2.13: the only common class of convolutions

    if weight.ndim != 3 or isinstance(module, _ConvNd):
        return None
    chosen = next(_top_k(model, path), None)
    if not chosen or chosen >= weight.shape[0]:
        return None
    return chosen * weight[0].numel()


def _top_k(model: Any, path: str) -> Iterator[int]:
    """Yield the `top_k` of routers in a module, then in the modules that contain it."""
    while "." in path:
        for module in model.get_submodule(path).modules():
            value = vars(module).get("top_k")
            if isinstance(value, int):
                yield value
        path = path.rpartition(".")[0]


def feed_forward_width(found: Collection[Matrix], hidden: int, *, gated: bool) -> int | None:
    """Return the largest width of a layer's feed-forward part over a token's active experts.

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
    """Return the FLOPs that are saved if the parameters with the names `frozen` are not trained.

    A frozen matrix has no gradient (2 FLOPs per element). Before the first trained parameter there
    are no gradients of inputs either (2 more, and attention's backward pass). `attention` are the
    layers that have attention.
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
    """Return the indices of layers with softmax attention, from a hybrid model's layer types."""
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
    """Return the layer in a parameter's name, "3" in "model.layers.3.mlp.weight", or None."""
    match = _LAYER.search(name)
    return match[1] if match else None
