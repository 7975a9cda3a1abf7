"""Base model: loading, the end-of-turn token and the extension of its context length."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ochat_ray.errors import UserError, one_line
from ochat_ray.models.model_directory import files_of, on_this_host
from ochat_ray.models.weights import check_loaded
from ochat_ray.recipes import CHAT
from ochat_ray.tokenization.tokenizer import (
    end_of_turn_id,
    has_end_of_turn,
    load_tokenizer,
    open_tokenizer,
)

VOCABULARY_MULTIPLE = 64
"""Embeddings are padded to a multiple of this many rows during training, for tensor cores."""


def load_config(path: str) -> Any:
    """Return the configuration of a Hugging Face directory, URI or hub name; run none of its code.

    Raises:
        UserError: it is missing or damaged, or needs code from the directory.
    """
    from transformers import AutoConfig

    directory = on_this_host(path, weights=False)
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        config._attn_implementation = None  # the run chooses it, not the saved configuration
    except Exception as error:  # whatever a configuration's code raises
        raise _cannot_open(path, error) from error
    return config


def load_model(
    path: str,
    dtype: torch.dtype | str,
    *,
    config: Any = None,
    attention: str | None = None,
    allow_pickle: bool = False,
    quantization: Mapping[str, Any] | None = None,
) -> Any:
    """Load a causal language model from a Hugging Face directory, URI or hub name.

    Args:
        path: the directory, URI or hub name.
        dtype: of the weights; "auto" is that of the file.
        config: transformers configuration; None takes that of the directory.
        attention: transformers' name of the attention implementation; None is its default.
        allow_pickle: read weights from a pickle, from which torch loads only tensors, instead of
            safetensors.
        quantization: further arguments of `from_pretrained` for a model that is quantized while it
            is loaded.

    Raises:
        UserError: there is no such model, it needs code or a pickle, weights are missing, or there
            is an adapter beside them.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # it would fill the job's log
    options = {} if attention is None else {"attn_implementation": attention}
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            on_this_host(path),
            dtype=dtype,
            config=config,
            use_safetensors=not allow_pickle,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # check_loaded reports them in one line
            output_loading_info=True,
            **options,
            **(quantization or {}),
        )
    except (OSError, ValueError, ImportError) as error:
        raise _cannot_open(path, error) from error
    model, info = loaded
    if hasattr(model, "peft_config"):
        raise _has_adapter(path)
    check_loaded(path, info)
    return model


def check_weights(path: str, *, allow_pickle: bool) -> None:
    """Check the weight files of a directory or URI against the --allow-pickle flag.

    Raises:
        UserError: there are no weights, only pickled ones without the flag, the flag has no
            effect, or there is an adapter.
    """
    found = files_of(path)
    if found is None:
        return
    names = [file.base_name for file in found[1]]
    if "adapter_config.json" in names:
        raise _has_adapter(path)
    safe = any(name.endswith(".safetensors") for name in names)
    pickled = any(name.endswith(".bin") for name in names)
    if not safe and not pickled:
        raise UserError(f"{path} has no weights; expected *.safetensors beside its config.json")
    if allow_pickle and safe:
        raise UserError(f"--allow-pickle has no effect: {path} has safetensors; leave it out")
    if pickled and not safe and not allow_pickle:
        raise UserError(
            f"{path} has pickled weights (*.bin) and no safetensors; a pickle can run code: "
            "convert it to safetensors, or trust it with --allow-pickle"
        )


def extend_context(
    config: Any, context: int, *, extrapolate: bool, rope_scaling: str | None
) -> None:
    """Extend a configuration in place to positions up to `context` tokens.

    Args:
        config: transformers configuration of the base model.
        context: length in tokens.
        extrapolate: extend rotary embeddings without scaling, as OpenChat did in 2023.
        rope_scaling: type of scaling in transformers, with the factor that reaches `context`.

    Raises:
        UserError: the model cannot have this context, or the scaling would have no effect.
    """
    config = config.get_text_config(decoder=True)  # for models that also take images
    limit = getattr(config, "max_position_embeddings", None)
    if limit is None or context <= limit:
        if rope_scaling is not None:
            raise UserError(
                f"--rope-scaling {rope_scaling} has no effect: the data's context of {context:,} "
                f"tokens fits the model's {limit if limit is None else format(limit, ',')}"
            )
        return
    too_long = f"the data has a context of {context:,} tokens, the model one of {limit:,}"
    shorter = f"prepare again or train with --max-length {limit}"
    rope = getattr(config, "rope_parameters", None)
    if not rope:
        raise UserError(f"{too_long} learned positions, which cannot be extended; {shorter}")
    if rope_scaling is None:
        if not extrapolate:
            raise UserError(f"{too_long}; {shorter}, or extend it with --rope-scaling")
        config.max_position_embeddings = context
        return
    if rope.get("rope_type", "default") != "default":
        raise UserError(f"the model's rotary embeddings are scaled already ({rope['rope_type']})")
    scaled = {**rope, "rope_type": rope_scaling, "factor": context / limit}
    if rope_scaling == "yarn":
        scaled["original_max_position_embeddings"] = limit
    config.rope_parameters = scaled
    if rope_scaling != "dynamic":  # dynamic scales inputs beyond this limit
        config.max_position_embeddings = context


def without_dropout(config: Any) -> Any:
    """Set every dropout rate and router noise of a configuration to 0 in place, and return it.

    Fine-tuning uses none. GPTBigCode's default is 0.1 in three places, Emu 3's is in its
    `text_config`, and PhiMoE multiplies its router's input by noise.
    """
    for name, value in list(vars(config).items()):
        if name.startswith("_"):
            continue
        if hasattr(value, "to_dict") and hasattr(value, "model_type"):
            without_dropout(value)
        elif isinstance(value, float) and (
            any(part in name for part in ("dropout", "drop_rate", "layerdrop"))
            or name.endswith(("pdrop", "jitter_noise"))
        ):
            setattr(config, name, 0.0)
    return config


def lacks_end_of_turn(path: str) -> bool:
    """Return whether the model at `path` has no end-of-turn token, or no embedding of it."""
    if not has_end_of_turn(path):
        return True
    rows = load_config(path).get_text_config(decoder=True).vocab_size
    return bool(end_of_turn_id(load_tokenizer(path)) >= rows)


def add_end_of_turn(model: Any, tokenizer: Any) -> None:
    """Add a row for the tokenizer's new end-of-turn token to the model's embeddings, in place.

    The row of the input embedding, and of the output embedding if it is another tensor, is the
    exact float32 mean of all rows before it. The padding up to a multiple of
    `VOCABULARY_MULTIPLE` belongs to no token: the loss ignores it and `export` removes it, so a
    served model cannot produce its ids. A vocabulary that already has the row keeps its size.

    Raises:
        UserError: the model has fewer embeddings than the tokenizer has ids.
    """
    new_id = end_of_turn_id(tokenizer)
    rows = model.get_input_embeddings().weight.shape[0]
    if new_id > rows:
        raise UserError(
            f"the model has {rows} embeddings but the tokenizer's end-of-turn token has id "
            f"{new_id}; is this tokenizer the model's own?"
        )
    before = [(len(w), _mean_row(w[:new_id])) for w in _weights_by_token(model)]
    if new_id == rows:
        model.resize_token_embeddings(
            rows + 1, mean_resizing=False, pad_to_multiple_of=VOCABULARY_MULTIPLE
        )
    with torch.no_grad():
        for (size, mean), weight in zip(before, _weights_by_token(model), strict=True):
            # Gemma 3n's embeddings per layer have fewer rows than the others.
            changed = slice(new_id, new_id + 1) if new_id < rows else slice(size, None)
            weight[changed] = mean.to(weight.dtype)


def embeddings(model: Any) -> list[nn.Parameter]:
    """Return input and output embedding; only one if they are tied."""
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    return list({id(module.weight): module.weight for module in modules}.values())


def _weights_by_token(model: Any) -> list[nn.Parameter]:
    """Return all weights with a row per token: `embeddings` and per-layer ones (Gemma 3n, 4)."""
    per_layer = getattr(model, "get_per_layer_input_embeddings", lambda: None)()
    return embeddings(model) + ([] if per_layer is None else [per_layer.weight])


def vocabulary_size(tokenizer: Any) -> int:
    """Return the tokenizer's highest id + 1; embedding rows from there on belong to no token."""
    return 1 + max(tokenizer.get_vocab().values())


def generation_config(tokenizer: Any, base: Any = None) -> Any:
    """Return a transformers GenerationConfig that stops at the end-of-turn token.

    It takes no settings from the base model. With the base's own template, it is instead a copy of
    `base` that also stops at each token that ends a turn.
    """
    from transformers import GenerationConfig

    if hasattr(tokenizer, "chat_ends"):
        found = copy.deepcopy(base) or GenerationConfig()
        own = found.eos_token_id
        ends = [*tokenizer.chat_ends, *(own if isinstance(own, list) else [own])]
        found.eos_token_id = [id for id in dict.fromkeys(ends) if id is not None]
        if found.pad_token_id is None:
            found.pad_token_id = tokenizer.pad_token_id
        return found
    eos = end_of_turn_id(tokenizer)
    return GenerationConfig(bos_token_id=tokenizer.bos_token_id, eos_token_id=eos, pad_token_id=eos)


def prepare_base(
    path: str, directory: Path, *, model_type: str = "openchat", allow_pickle: bool = False
) -> Path:
    """Return a Hugging Face directory of the base with the end-of-turn token and safetensors.

    It is `path` itself, or its copy on this host, if nothing has to change; otherwise a copy in
    `directory`, in the weights' own dtype. The model is changed once, before training, since
    resizing embeddings that ZeRO-3 has partitioned is slow and error-prone. For the base's own
    template (`model_type` "chat") no token is added.
    """
    adds_token = model_type != CHAT and lacks_end_of_turn(path)
    if not adds_token and not allow_pickle:
        return Path(on_this_host(path))
    shutil.rmtree(directory, ignore_errors=True)
    tokenizer = open_tokenizer(path) if model_type == CHAT else load_tokenizer(path)
    model = load_model(path, "auto", allow_pickle=allow_pickle)
    if adds_token:
        add_end_of_turn(model, tokenizer)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def _mean_row(weight: torch.Tensor) -> torch.Tensor:
    # In float64 and rounded once: the exact float32 mean for every summation order.
    return weight.detach().to(torch.float64).mean(dim=0).to(torch.float32)


def _has_adapter(path: str) -> UserError:
    return UserError(
        f"{path} has an adapter (adapter_config.json), which transformers would load into the "
        "model; give the base alone, or a model with the adapter merged"
    )


def _cannot_open(path: str, error: Exception) -> UserError:
    return UserError(
        f"cannot open a model at {path}: {one_line(error)}; expected a Hugging Face directory with "
        "config.json and *.safetensors"
    )
