"""One pack through a transformers model, so that no conversation sees another."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from ochat_ray.train.batch import Batch


def logits(model: Any, batch: Batch, *, vocabulary: int | None = None) -> torch.Tensor:
    """Logits at the pack's predicting positions, of shape (predicted, vocabulary).

    `model` is a causal language model or an engine around one, whose `config.use_cache` is False.
    Ids from `vocabulary` on belong to no token and are left out, as if they were impossible.
    """
    inner = getattr(model, "module", model)
    _unstretch(inner)
    arguments: dict[str, Any] = {}
    selects = "logits_to_keep" in inspect.signature(inner.forward).parameters
    if selects:
        arguments["logits_to_keep"] = batch.predicting
    if "flash" in str(inner.config._attn_implementation):
        arguments |= {
            "cu_seq_lens_q": batch.borders,
            "cu_seq_lens_k": batch.borders,
            "max_length_q": batch.longest,
            "max_length_k": batch.longest,
        }
    result = model(
        input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False, **arguments
    ).logits[0]
    if not selects:
        result = result[batch.predicting]
    return result if vocabulary is None else result[:, :vocabulary]


def _unstretch(model: Any) -> None:
    """Forget the longest conversation so far.

    Dynamic rotary scaling (transformers 5.19) keeps the frequencies of the longest input it has
    seen, so that a result would depend on what came before.
    """
    for module in model.modules():
        if getattr(module, "rope_type", None) == "dynamic":
            module.max_seq_len_cached = module.original_max_seq_len
            module.register_buffer(
                "inv_freq", module.original_inv_freq.to(module.inv_freq.device), persistent=False
            )
