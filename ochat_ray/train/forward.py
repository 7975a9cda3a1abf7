"""Forward pass of a pack through a transformers model, with its conversations isolated."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch

from ochat_ray.train.batch import Batch

PACKED_SDPA = "packed"
"""Name of our attention implementation in transformers. It does not contain "sdpa": for models
without sdpa, such as GPT-OSS, transformers rejects such names
(`PreTrainedModel.get_correct_attn_implementation`, 5.19)."""

# Read when a model creates its masks, which gradient checkpointing does not recompute.
_pack_lengths: ContextVar[list[int] | None] = ContextVar("pack_lengths", default=None)


class PackMask(NamedTuple):
    """Mask of `PACKED_SDPA`, in place of transformers' tensor of shape (tokens, tokens).

    `lengths` are the tokens of each conversation; `allowed` has for each conversation a boolean
    tensor of shape (tokens, tokens), or None for plain causal attention.
    """

    lengths: list[int]
    allowed: list[torch.Tensor | None]


def logits(model: Any, batch: Batch, *, vocabulary: int | None = None) -> torch.Tensor:
    """Return the logits at the pack's label positions, of shape (labels, vocabulary).

    `model` is a causal language model or an engine around one, with `config.use_cache` False.
    `probe.choose_attention_mode` tests whether a model isolates the conversations of a pack. A
    pack of one conversation is a plain forward pass of the model. Ids from `vocabulary` on belong
    to no token; their logits are removed, which gives them probability 0.
    """
    inner = getattr(model, "module", model)
    _reset_dynamic_rope(inner)
    attention = str(inner.config._attn_implementation)
    accepted = inspect.signature(inner.forward).parameters
    arguments: dict[str, Any] = {}
    if len(batch.cu_seqlens) > 2:
        arguments["position_ids"] = batch.position_ids
    if "use_cache" in accepted:
        arguments["use_cache"] = False
    selects = "logits_to_keep" in accepted
    if selects:
        arguments["logits_to_keep"] = batch.label_positions
    if "flash" in attention and any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
        arguments |= {
            "cu_seq_lens_q": batch.cu_seqlens,
            "cu_seq_lens_k": batch.cu_seqlens,
            "max_length_q": batch.max_seqlen,
            "max_length_k": batch.max_seqlen,
        }
    lengths = batch.cu_seqlens.diff().tolist() if attention == PACKED_SDPA else None
    token = _pack_lengths.set(lengths)
    try:
        result = model(input_ids=batch.input_ids, **arguments).logits[0]
    finally:
        _pack_lengths.reset(token)
    if not selects:
        result = result[batch.label_positions]
    return result if vocabulary is None else result[:, :vocabulary]


def register_packed_sdpa() -> None:
    """Register `PACKED_SDPA` with transformers: PyTorch's attention per conversation.

    Its own "sdpa" needs a mask of shape (tokens, tokens) for a packed sequence, and computes all
    scores.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(PACKED_SDPA, _packed_sdpa)
    AttentionMaskInterface.register(PACKED_SDPA, _pack_mask)


def _pack_mask(
    *,
    mask_function: Callable[..., torch.Tensor],
    device: torch.device,
    local_size: int | None = None,
    use_vmap: bool = False,
    **_: Any,
) -> PackMask:
    """Return the mask of a pack, as a mask function of transformers (`masking_utils`, 5.19).

    `mask_function` combines the masks of one kind of layer: causality, a sliding window or chunks
    (both of `local_size` tokens), and the conversations' boundaries. It is called for positions of
    the same conversation only.
    """
    lengths = _pack_lengths.get()
    if lengths is None:
        raise TypeError(f"attention {PACKED_SDPA!r} works within ochat_ray.train.forward.logits")
    if use_vmap:
        raise TypeError(f"attention {PACKED_SDPA!r} does not know the masks that this model adds")
    if local_size is None:
        return PackMask(lengths, [None] * len(lengths))
    allowed: list[torch.Tensor | None] = []
    zero = torch.zeros((), dtype=torch.long, device=device)
    start = 0
    for length in lengths:
        place = torch.arange(start, start + length, device=device)
        own = mask_function(zero, zero, place[:, None], place[None, :])
        # The fast kernels take no mask, so a mask that is only causal is omitted.
        plain = length <= local_size and torch.equal(own, torch.ones_like(own).tril())
        allowed.append(None if plain else own)
        start += length
    return PackMask(lengths, allowed)


_WITHOUT_EFFECT = frozenset(
    """
    sliding_window is_causal position_ids cache_position use_cache output_attentions
    output_hidden_states output_router_logits return_dict layer_idx
    """.split()
)
"""Arguments without effect here: transformers' masks contain the window and the causality, and
position ids are already applied to queries and keys."""


def _packed_sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention, as an attention function of transformers.

    Queries, keys and values are of shape (1, heads, tokens, head size).

    `softcap` bounds the scores by a tanh (Gemma 2); `s_aux` of shape (heads,) are the scores of
    attention sinks, which take part in the softmax without a value (GPT-OSS).

    Raises:
        TypeError: the model passes an argument or a mask that this function cannot apply.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if not isinstance(attention_mask, PackMask):
        raise TypeError(f"attention {PACKED_SDPA!r} needs a model with transformers' masks")
    unknown = sorted(k for k, v in others.items() if v is not None and k not in _WITHOUT_EFFECT)
    if unknown:
        raise TypeError(f"attention {PACKED_SDPA!r} does not know the arguments {unknown}")
    lengths, masks = attention_mask
    attended = []
    for q, k, v, allowed in zip(
        query.split(lengths, dim=2),
        key.split(lengths, dim=2),
        value.split(lengths, dim=2),
        masks,
        strict=True,
    ):
        if softcap is None and s_aux is None:
            mask = None if allowed is None else allowed[None, None]
            attended.append(
                sdpa_attention_forward(module, q, k, v, mask, dropout, scaling, is_causal=True)[0]
            )
        else:
            attended.append(_scored_attention(q, k, v, allowed, dropout, scaling, softcap, s_aux))
    return torch.cat(attended, dim=1), None


def _scored_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    allowed: torch.Tensor | None,
    dropout: float,
    scaling: float | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Compute attention of one conversation from explicit scores, which kernels do not expose.

    The result has the shape (1, tokens, heads, head size). The softmax is in float32.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if allowed is None:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    scores = scores.float().masked_fill(~allowed, float("-inf"))
    if sinks is not None:
        column = sinks.float().view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, column], dim=-1)
    weights = scores.softmax(dim=-1)[..., : key.shape[2]]
    weights = torch.nn.functional.dropout(weights, dropout).to(value.dtype)
    return (weights @ value).transpose(1, 2)


def _reset_dynamic_rope(model: Any) -> None:
    """Reset the frequencies of dynamic rotary scaling.

    transformers 5.19 keeps those of the longest input so far, so a result would depend on earlier
    inputs.
    """
    for module in model.modules():
        if getattr(module, "rope_type", None) == "dynamic":
            module.max_seq_len_cached = module.original_max_seq_len
            module.register_buffer(
                "inv_freq", module.original_inv_freq.to(module.inv_freq.device), persistent=False
            )
