"""Small random models for the probe: creation, rescaled weights and outputs of each layer."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch


def build(config: Any, attention: str, dtype: torch.dtype) -> Any:
    """Return a random model of the configuration, in evaluation mode and without a cache."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(
        copy.deepcopy(config), attn_implementation=attention, dtype=dtype
    )
    model.config.use_cache = False
    return model.eval()


@torch.no_grad()
def rescale_weights(model: Any) -> None:
    """Rescale weights so that every part of the model affects its output.

    With the initial weights (standard deviation 0.02) attention is nearly uniform and layers add
    almost nothing, which would hide errors.
    """
    for parameter in model.parameters():
        if parameter.ndim < 2:
            parameter.add_(0.1 * torch.randn_like(parameter))
            continue
        wanted = parameter.shape[-1] ** -0.5
        spread = float(parameter.float().std()) if parameter.numel() > 1 else wanted
        if spread == 0:
            parameter.add_(wanted * torch.randn_like(parameter))
        elif spread < wanted:
            parameter.mul_(wanted / spread)


@contextlib.contextmanager
def layer_outputs(model: Any) -> Iterator[dict[str, list[torch.Tensor]]]:
    """Collect the outputs of each layer in a dictionary, by the layer's name."""
    layers = next(
        (
            (name, module)
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.ModuleList)
            and len(module) == model.config.get_text_config(decoder=True).num_hidden_layers
        ),
        None,
    )
    collected: dict[str, list[torch.Tensor]] = {}
    handles = []
    if layers is not None:
        for place, layer in enumerate(layers[1]):
            name = f"{layers[0]}.{place}"
            collected[name] = []

            def keep(_: Any, __: Any, output: Any, name: str = name) -> None:
                hidden = output[0] if isinstance(output, (tuple, list)) else output
                collected[name].append(hidden.detach().float())

            handles.append(layer.register_forward_hook(keep))
    try:
        yield collected
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def fixed_seed() -> Iterator[None]:
    """Fix the random seed in the context, and silence transformers' warnings.

    Computes in one thread, since the operations are too small for more. All is restored after.
    """
    from transformers.utils import logging

    verbosity, threads = logging.get_verbosity(), torch.get_num_threads()
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(0)
            yield
    finally:
        logging.set_verbosity(verbosity)
        torch.set_num_threads(threads)
