"""The base model: open it, and give it the end-of-turn token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ochat_ray.errors import UserError
from ochat_ray.template import chat_template
from ochat_ray.tokenizer import end_of_turn_id, has_end_of_turn, load_tokenizer


def load_model(path: str, dtype: torch.dtype) -> Any:
    """A causal language model from a Hugging Face directory or hub name; safetensors only.

    Raises:
        UserError: there is no such model, or it would need code or a pickle to open.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # of loading, which would fill a job's log
    try:
        return AutoModelForCausalLM.from_pretrained(path, dtype=dtype, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot open a model at {path}: {_first_line(error)}; expected a Hugging Face "
            "directory with config.json and *.safetensors"
        ) from error


def add_end_of_turn(model: Any, tokenizer: Any) -> None:
    """Give the model's embeddings a row for the tokenizer's new end-of-turn token, in place.

    The row of the input embedding, and of the output embedding where that is another tensor, is
    the exact float32 mean of all rows before it. A vocabulary that was padded has the row already.

    Raises:
        UserError: the model's vocabulary ends before the tokenizer's.
    """
    new_id = end_of_turn_id(tokenizer)
    rows = model.get_input_embeddings().weight.shape[0]
    if new_id > rows:
        raise UserError(
            f"the model has {rows} embeddings but the tokenizer's end-of-turn token has id "
            f"{new_id}; is this tokenizer the model's own?"
        )
    means = [_mean_row(weight[:new_id]) for weight in embeddings(model)]
    if new_id == rows:
        model.resize_token_embeddings(rows + 1, mean_resizing=False)
    with torch.no_grad():
        for weight, mean in zip(embeddings(model), means, strict=True):
            weight[new_id] = mean.to(weight.dtype)


def embeddings(model: Any) -> list[nn.Parameter]:
    """Input and output embedding; one where they are tied."""
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    return list({id(module.weight): module.weight for module in modules}.values())


def save_with_end_of_turn(model: Any, tokenizer: Any, directory: Path, model_type: str) -> None:
    """Write a Hugging Face directory in which the end-of-turn token ends generation."""
    configure_generation(model, tokenizer)
    tokenizer.chat_template = chat_template(model_type)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def configure_generation(model: Any, tokenizer: Any) -> None:
    """Make the end-of-turn token the model's EOS, and drop sampling settings of the base."""
    from transformers import GenerationConfig

    eos = end_of_turn_id(tokenizer)
    model.config.eos_token_id = eos
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=eos, pad_token_id=eos
    )


def prepare_base(path: str, directory: Path, model_type: str) -> Path:
    """The base model with the end-of-turn token, as a Hugging Face directory.

    That is `path` itself where it has the token already; otherwise a copy in `directory`.
    Done once, on one machine, before training: resizing embeddings that ZeRO-3 has
    partitioned is slow and easy to get wrong.
    """
    if has_end_of_turn(path):
        return Path(path)
    tokenizer = load_tokenizer(path)
    model = load_model(path, torch.float32)
    add_end_of_turn(model, tokenizer)
    save_with_end_of_turn(model, tokenizer, directory, model_type)
    return directory


def _mean_row(weight: torch.Tensor) -> torch.Tensor:
    # In float64 and rounded once: the float32 mean to its last bit, whatever the summation order.
    return weight.detach().to(torch.float64).mean(dim=0).to(torch.float32)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
