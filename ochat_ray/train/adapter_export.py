"""Export of a trained run: the whole model, or its adapters in peft's format, and its check."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import distributed

from ochat_ray.errors import UserError, first_line
from ochat_ray.models.base_model import generation_config, load_config, load_model
from ochat_ray.models.model_directory import on_this_host
from ochat_ray.tokenization.exported_tokenizer import export_tokenizer
from ochat_ray.train.batch import Batch
from ochat_ray.train.config import TrainConfig
from ochat_ray.train.engine import Engine
from ochat_ray.train.export import export
from ochat_ray.train.lora import ADAPTER, adapter_config, trained_adapters
from ochat_ray.train.lora_options import quantizes_base
from ochat_ray.train.meta_model import meta_model
from ochat_ray.train.quantization import (
    dequantized,
    load_quantized,
    quantized_layers,
)
from ochat_ray.train.round_trip import (
    TOLERANCE,
    check_export,
    check_logits,
    dtype_for,
    logits_difference,
    relative_difference,
)

WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
"""Prefix of the names in peft's files: the path of the base model in a PeftModel."""


def export_checked(
    engine: Engine,
    config: TrainConfig,
    tokenizer: Any,
    directory: Path,
    *,
    model_type: str,
    base: str,
    pack: Batch,
) -> dict[str, Any]:
    """Export a run's model to an empty directory and check the files; all workers call it.

    Without `--lora` and with `--merge` it is the whole model, otherwise the adapters. After a merge
    the engine's model has no adapters. Of a quantized base the reference is what was trained: the
    adapters on the quantized weights.

    Args:
        engine: the trained engine.
        config: options of the run.
        tokenizer: the base's tokenizer.
        directory: the export.
        model_type: name of the chat template.
        base: the base model on this host.
        pack: one conversation, for the check.

    Returns:
        The export's part of ochat.json; the difference is only on the first worker.

    Raises:
        UserError: the files do not compute what the engine computes.
    """
    if config.lora is None:
        export(engine, tokenizer, directory, model_type)
        return {"export_difference": _check_whole(engine, directory, pack)}
    trained = engine.predict(pack.to(engine.device))
    found = {
        "lora": config.lora,
        "base_model": config.model,
        "trained_parameters": sum(map(_size, trained_adapters(engine.model).values())),
    }
    quantizes = quantizes_base(config)
    if not config.merge:
        export_adapter(engine, tokenizer, directory, model_type)
        difference = None
        if distributed.get_rank() == 0:
            with engine.unpartitioned_loading():
                difference = check_adapter(
                    directory, base, pack, trained, engine.dtype, quantized=quantizes
                )
                if quantizes:
                    found["unquantized_difference"] = unquantized_difference(
                        directory, base, pack, trained
                    )
        return {"adapter": found, "export_difference": difference}
    if quantizes:
        merge_dequantized(engine)
        export(engine, tokenizer, directory, model_type)
        difference = None
        if distributed.get_rank() == 0:
            with engine.unpartitioned_loading():
                # The sums of weights and adapters are rounded to bfloat16.
                difference = check_export(directory, pack, trained, torch.bfloat16)
        merged_adapter = found | {"difference": difference}
        return {"merged_adapter": merged_adapter, "export_difference": difference}
    merge(engine)
    export(engine, tokenizer, directory, model_type)
    merged = engine.predict(pack.to(engine.device))
    return {
        "merged_adapter": found | {"difference": _check_merged(trained, merged)},
        "export_difference": _check_whole(engine, directory, pack),
    }


def export_adapter(engine: Engine, tokenizer: Any, directory: Path, model_type: str) -> None:
    """Write adapters as peft does, in the engine's dtype, and the tokenizer; all workers call it.

    `base_model_name_or_path` is the base of the run's options.
    """
    from peft import get_peft_model_state_dict

    first, tensors = distributed.get_rank() == 0, dict[str, torch.Tensor]()
    for name, parameter in trained_adapters(engine.model).items():
        with engine.gathered(parameter):
            if first:
                tensors[name] = parameter.detach().to("cpu", copy=True).contiguous()
    if first:
        written = get_peft_model_state_dict(
            engine.model, tensors, ADAPTER, save_embedding_layers=False
        )
        assert len(written) == len(tensors), "peft leaves adapters out of its file"
        named = {f"{_PREFIX}{name}": tensor for name, tensor in written.items()}
        save_file(named, directory / WEIGHTS, metadata={"format": "pt"})
        adapter_config(engine.model).save_pretrained(str(directory))
        generation_config(tokenizer, engine.model.generation_config).save_pretrained(directory)
        export_tokenizer(tokenizer, model_type).save_pretrained(directory)
    distributed.barrier()


@torch.no_grad()
def merge(engine: Engine, *, skip: Collection[Any] = ()) -> None:
    """Add the adapters to the weights of the engine's model and remove them; all workers call it.

    One layer is gathered at a time. The sum is in the engine's dtype, as in peft. Adapters of the
    layers `skip` are kept.
    """
    from peft.tuners.lora import LoraLayer

    model = engine.model
    adapted = [(name, m) for name, m in model.named_modules() if isinstance(m, LoraLayer)]
    layer: Any
    for name, layer in adapted:
        plain = layer.get_base_layer()
        if plain in skip:
            continue
        with contextlib.ExitStack() as stack:
            for parameter in layer.parameters():
                changes = parameter is plain.weight
                stack.enter_context(engine.gathered(parameter, changes=changes))
            layer.merge(adapter_names=[ADAPTER])
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, plain)


@torch.no_grad()
def merge_dequantized(engine: Engine) -> None:
    """Replace the quantized layers of the engine's model by their sums; all workers call it.

    The sum of a dequantized weight and its adapter is in the engine's dtype. It is on the CPU, of
    the first worker only, since a GPU need not hold the model in this dtype; so the model can only
    be exported afterwards.
    """
    from transformers.pytorch_utils import Conv1D

    model = engine.model
    merge(engine, skip=quantized_layers(model).values())
    first = distributed.get_rank() == 0
    for name, plain in quantized_layers(model).items():
        place = name.removesuffix(".base_layer")
        layer: Any = model.get_submodule(place)
        with contextlib.ExitStack() as stack:
            for parameter in layer.parameters():
                stack.enter_context(engine.gathered(parameter))
            weight = dequantized(plain)
            if place != name:
                if variant := layer.lora_variant.get(ADAPTER):
                    weight = variant.merge_safe(layer, ADAPTER, weight)
                else:
                    weight = weight + layer.get_delta_weight(ADAPTER)
        if issubclass(plain.source_cls, Conv1D):  # quantized after transposition
            weight = weight.T
        held = torch.nn.Module()
        held.weight = torch.nn.Parameter(weight.to("cpu" if first else "meta"))
        held.register_parameter("bias", plain.bias)
        model.set_submodule(place, held)
    model.hf_quantizer.remove_quantization_config(model)


def check_adapter(
    directory: Path,
    base: str,
    pack: Batch,
    expected: torch.Tensor,
    dtype: torch.dtype,
    *,
    quantized: bool = False,
) -> float | None:
    """Load an exported adapter with peft and compare its logits with the engine's.

    Arguments, result and errors are those of `check_export`; `base` is the base model, and
    `quantized` whether it is quantized as in training. None also means that the host's free memory
    does not hold the base.
    """
    opened = _base_dtype(base)
    if opened is None:
        return None
    if quantized:
        opened = dtype  # from weights in another dtype, others are quantized
    model = _open_adapter(directory, base, opened, quantized=quantized)
    # The base's own embeddings may have rows that belong to no token.
    return check_logits(model, pack, expected, opened, dtype, vocabulary=expected.shape[-1])


def unquantized_difference(
    directory: Path, base: str, pack: Batch, expected: torch.Tensor
) -> float | None:
    """Return the difference of logits between the unquantized base and the engine's quantized one.

    Both have the adapter. None if the host's free memory does not hold the base.
    """
    opened = _base_dtype(base)
    if opened is None:
        return None
    model = _open_adapter(directory, base, opened)
    return logits_difference(model, pack, expected, vocabulary=expected.shape[-1])


def _base_dtype(base: str) -> torch.dtype | None:
    # A hub name has no files here to measure.
    model = meta_model(load_config(base))
    return dtype_for(2 * sum(parameter.numel() for parameter in model.parameters()))


def _open_adapter(
    directory: Path, base: str, dtype: torch.dtype, *, quantized: bool = False
) -> Any:
    from peft import PeftModel

    load = partial(load_quantized, device=torch.device("cpu")) if quantized else load_model
    try:
        model = load(on_this_host(base), dtype)
        return PeftModel.from_pretrained(model, str(directory)).eval()
    except Exception as error:  # whatever a model's code raises
        raise UserError(
            "the exported adapter cannot be loaded, and is not published; the last checkpoint is "
            f"kept: {first_line(error, 200)}"
        ) from error


def _check_whole(engine: Engine, directory: Path, pack: Batch) -> float | None:
    expected = engine.predict(pack.to(engine.device))
    if distributed.get_rank() != 0:
        return None
    with engine.unpartitioned_loading():
        return check_export(directory, pack, expected, engine.dtype)


def _check_merged(trained: torch.Tensor, merged: torch.Tensor) -> float:
    """Return the difference of logits before and after a merge, which rounds to bfloat16."""
    difference = relative_difference(merged, trained)
    tolerance = TOLERANCE[torch.bfloat16]
    if not difference <= tolerance:
        raise UserError(
            f"the merged model's logits differ by {difference:.1%} from those of base and adapter "
            f"(rounding explains at most {tolerance:.1%}); export the adapter without --merge"
        )
    return difference


def _size(parameter: torch.nn.Parameter) -> int:
    # Under ZeRO-3 a parameter is flat and partitioned.
    return int(getattr(parameter, "ds_numel", parameter.numel()))
