"""One pack through a transformers model, so that no conversation sees another."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from ochat_ray.train.batch import Batch

PACKED_SDPA = "packed_sdpa"


def logits(model: Any, batch: Batch, *, vocabulary: int | None = None) -> torch.Tensor:
    """Logits at the pack's predicting positions, of shape (predicted, vocabulary).

    `model` is a causal language model or an engine around one, whose `config.use_cache` is False.
    Ids from `vocabulary` on belong to no token and are left out, as if they were impossible.
    """
    inner = getattr(model, "module", model)
    _unstretch(inner)
    attention = str(inner.config._attn_implementation)
    arguments: dict[str, Any] = {}
    selects = "logits_to_keep" in inspect.signature(inner.forward).parameters
    if selects:
        arguments["logits_to_keep"] = batch.predicting
    if attention == PACKED_SDPA:
        arguments["conversation_lengths"] = batch.borders.diff().tolist()
    elif "flash" in attention:
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


def register_packed_sdpa() -> None:
    """Teach transformers `PACKED_SDPA`: PyTorch's attention, one conversation after the other.

    Its own "sdpa" takes a packed sequence with a mask of tokens x tokens, and computes all of it.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(PACKED_SDPA, _packed_sdpa)
    AttentionMaskInterface.register(PACKED_SDPA, lambda **_: None)


def _packed_sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # noqa: ARG001 - there is none
    *,
    conversation_lengths: list[int],
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention function; queries, keys, values are (1, heads, tokens, head size)."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    parts = (tensor.split(conversation_lengths, dim=2) for tensor in (query, key, value))
    attended = [
        sdpa_attention_forward(module, q, k, v, None, dropout, scaling, is_causal=True)[0]
        for q, k, v in zip(*parts, strict=True)
    ]
    return torch.cat(attended, dim=1), None


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
