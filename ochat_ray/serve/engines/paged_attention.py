"""Attention over transformers' paged cache on a CPU, computed per request.

transformers' own "sdpa" (5.19) puts the keys of the entire batch in one row, lets every query
attend to all of them and hides other requests' keys with a dense mask, which it rebuilds for every
step. With 16 requests that is 16 times the work.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

PAGED_SDPA = "ochat_paged_sdpa"

PLAIN = frozenset("gpt_neox llama mistral phi3 qwen2 qwen3".split())
"""Model types with plain causal softmax attention: no sliding window, sinks or soft-capping.

Others keep transformers' own attention.
"""

_FULL = "full_attention"
_current = threading.local()


def suits(config: Any) -> bool:
    """Return whether a model with this text config may use `PAGED_SDPA`."""
    types = getattr(config, "layer_types", None)
    return (
        config.model_type in PLAIN
        and getattr(config, "sliding_window", None) is None
        and (types is None or set(types) == {_FULL})
    )


def register_paged_sdpa() -> None:
    """Register `PAGED_SDPA` with transformers."""
    AttentionInterface.register(PAGED_SDPA, _paged_sdpa)
    AttentionMaskInterface.register(PAGED_SDPA, lambda **_: None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Prefill:
    """Request with several new tokens: their range in the batch, and its keys.

    `index` holds the positions of all its keys in the cache, and `mask`, [new, keys], the keys
    visible to each new token; both are None if the new tokens are the entire request.
    """

    start: int
    end: int
    index: torch.Tensor | None
    mask: torch.Tensor | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Decodes:
    """Requests with one new token and keys in the cache: R of them, with N pages in total.

    Attributes:
        tokens: [R], positions of the new tokens in the batch.
        pages: [N], page numbers, request by request.
        owners: [N], the request (0 to R - 1) that reads each page.
        slots: [N], each page's position in R x `most` pages; None if all have `most`.
        most: Number of pages of the longest request.
        mask: [N, 1, 1, page tokens], 0 for written entries and -inf for the rest.
    """

    tokens: torch.Tensor
    pages: torch.Tensor
    owners: torch.Tensor
    slots: torch.Tensor | None
    most: int
    mask: torch.Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """State shared by all layers of one forward pass."""

    prefills: tuple[Prefill, ...]
    decodes: Decodes | None


def plan_batch(
    query_borders: Sequence[int],
    key_borders: Sequence[int],
    read_index: torch.Tensor,
    *,
    page_tokens: int,
    dtype: torch.dtype,
) -> Plan:
    """Group a batch's requests by number of new tokens.

    Args:
        query_borders: Offsets of the requests' new tokens (`cu_seqlens` of the queries).
        key_borders: Offsets of the requests' keys.
        read_index: Positions of the keys in the cache, in order of request and page; empty if no
            request has any in the cache.
        page_tokens: Tokens per page.
        dtype: Type of the masks.
    """
    prefills: list[Prefill] = []
    tokens: list[int] = []
    pages: list[torch.Tensor] = []
    counts: list[int] = []
    fill: list[int] = []
    spans = zip(query_borders, query_borders[1:], key_borders, key_borders[1:], strict=False)
    for start, end, first_key, end_key in spans:
        new, keys = end - start, end_key - first_key
        if new == keys:
            prefills.append(Prefill(start=start, end=end, index=None, mask=None))
        elif new > 1:
            mask = torch.ones(new, keys, dtype=torch.bool).tril(keys - new)
            index = read_index[first_key:end_key]
            prefills.append(Prefill(start=start, end=end, index=index, mask=mask))
        else:
            tokens.append(start)
            pages.append(read_index[first_key:end_key:page_tokens] // page_tokens)
            counts.append(len(pages[-1]))
            fill += [page_tokens] * (counts[-1] - 1)
            fill.append(keys - page_tokens * (counts[-1] - 1))
    if not tokens:
        return Plan(prefills=tuple(prefills), decodes=None)
    owners = torch.arange(len(tokens)).repeat_interleave(torch.tensor(counts))
    most, slots = max(counts), None
    if min(counts) < most:
        slots = torch.cat(
            [torch.arange(count) + most * row for row, count in enumerate(counts)],
        )
    unwritten = torch.arange(page_tokens) >= torch.tensor(fill)[:, None]
    mask = torch.zeros(unwritten.shape, dtype=dtype).masked_fill(unwritten, -torch.inf)
    decodes = Decodes(
        tokens=torch.tensor(tokens),
        pages=torch.cat(pages),
        owners=owners,
        slots=slots,
        most=most,
        mask=mask[:, None, None],
    )
    return Plan(prefills=tuple(prefills), decodes=decodes)


def decode(
    query: torch.Tensor,
    key_pages: torch.Tensor,
    value_pages: torch.Tensor,
    decodes: Decodes,
    scaling: float,
) -> torch.Tensor:
    """Attend with one query per request: [requests, heads, head size] in and out.

    Pages are [pages, page tokens, key-value heads, head size]; unwritten entries must be finite.
    PyTorch's fused attention gives the same result, but on a CPU with so few queries it takes five
    times as long as two batched products of small matrices, one per page and head.
    """
    requests, heads, size = query.shape
    page_tokens, kv_heads = key_pages.shape[1:3]
    pages, group = len(decodes.pages), heads // kv_heads
    asked = query.index_select(0, decodes.owners).view(pages * kv_heads, group, size)
    keys, values = (
        cached.transpose(1, 2)
        .index_select(0, decodes.pages)
        .view(pages * kv_heads, page_tokens, size)
        for cached in (key_pages, value_pages)
    )
    scores = torch.bmm(asked * scaling, keys.transpose(1, 2))
    scores = scores.view(pages, kv_heads, group, page_tokens) + decodes.mask
    wide = (requests, decodes.most, kv_heads, group, page_tokens)
    if decodes.most > 1:
        if decodes.slots is not None:
            empty = scores.new_full((requests * decodes.most, *scores.shape[1:]), -torch.inf)
            scores = empty.index_copy_(0, decodes.slots, scores)
        scores = scores.view(wide).permute(0, 2, 3, 1, 4).flatten(3)
    weights = scores.softmax(-1)
    if decodes.most > 1:
        weights = weights.unflatten(3, (decodes.most, page_tokens)).permute(0, 3, 1, 2, 4)
        weights = weights.flatten(0, 1)
        if decodes.slots is not None:
            weights = weights.index_select(0, decodes.slots)
    parts = torch.bmm(weights.reshape(pages * kv_heads, group, page_tokens), values)
    parts = parts.view(pages, heads, size)
    if decodes.most == 1:
        return parts
    if decodes.slots is None:
        return parts.view(requests, decodes.most, heads, size).sum(1)
    total = torch.zeros(requests, heads, size).index_add_(0, decodes.owners, parts.float())
    return total.to(query.dtype)


def _paged_sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # noqa: ARG001 - there is none
    *,
    cache: Any,
    cu_seq_lens_q: torch.Tensor,
    cu_seq_lens_k: Mapping[str, torch.Tensor],
    read_index: list[torch.Tensor],
    write_index: list[torch.Tensor],
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention function for transformers; inputs are [1, heads, tokens, head size]."""
    layer: Any = module.layer_idx
    key_pages, value_pages = cache.layer_to_allocator[layer].get_cache_for_block_table(layer)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    for pages, new in ((key_pages, key), (value_pages, value)):
        # The unwritten end of a page is multiplied by 0, which cancels any values left by an
        # earlier request except infinities and NaN.
        finite = torch.nan_to_num(new[0].transpose(0, 1), nan=0.0, posinf=0.0, neginf=0.0)
        pages.view(-1, *pages.shape[2:]).index_copy_(0, write_index[0], finite)
    if getattr(_current, "step", None) is not read_index:
        # The manager creates this list for every forward pass, and all layers share it.
        _current.step = read_index
        _current.plan = plan_batch(
            cu_seq_lens_q.tolist(),
            cu_seq_lens_k[_FULL].tolist(),
            read_index[0],
            page_tokens=key_pages.shape[1],
            dtype=query.dtype,
        )
    plan: Plan = _current.plan
    decodes = plan.decodes
    by_token = query[0].transpose(0, 1)
    if decodes is not None and not plan.prefills:
        return decode(by_token, key_pages, value_pages, decodes, scaling)[None], None
    out = torch.empty_like(by_token, memory_format=torch.contiguous_format)
    if decodes is not None:
        asked = by_token.index_select(0, decodes.tokens)
        out[decodes.tokens] = decode(asked, key_pages, value_pages, decodes, scaling)
    for prefill in plan.prefills:
        span = slice(prefill.start, prefill.end)
        keys, values = key[:, :, span], value[:, :, span]
        if prefill.index is not None:
            keys, values = (
                pages.view(-1, *pages.shape[2:])
                .index_select(0, prefill.index)
                .transpose(0, 1)
                .unsqueeze(0)
                for pages in (key_pages, value_pages)
            )
        attended = scaled_dot_product_attention(
            query[:, :, span],
            keys,
            values,
            attn_mask=prefill.mask,
            is_causal=prefill.mask is None,
            scale=scaling,
            enable_gqa=query.shape[1] != keys.shape[1],
        )
        out[span] = attended[0].transpose(0, 1)
    return out[None], None
