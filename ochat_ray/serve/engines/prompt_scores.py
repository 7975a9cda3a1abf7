"""Log-probabilities of prompts in transformers' continuous batching.

transformers (5.19) computes the logits of each request's last token only. For a batch with prompts
to score, two hooks of the model extend `logits_to_keep` by their tokens, and take the additional
rows off before the manager reads the logits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessorList,
)
from transformers.generation.continuous_batching.requests import FutureRequestState
from transformers.generation.logits_process import LogitsProcessorList

from ochat_ray.serve.engines.base import PromptLogprobs

logger = logging.getLogger(__name__)

ROWS_AT_ONCE = 128
"""Rows of logits whose log-probabilities are computed at once, to limit memory."""


class PromptScores:
    """Log-probabilities of one prompt, filled as its tokens are prefilled."""

    def __init__(self, prompt_ids: Sequence[int], top: int, vocabulary: int) -> None:
        count, top = len(prompt_ids) - 1, min(top, vocabulary)
        self.found = PromptLogprobs(
            token_ids=np.array(prompt_ids, dtype=np.int64),
            logprobs=np.zeros(count, dtype=np.float32),
            ranks=np.zeros(count, dtype=np.int64),
            top_ids=np.zeros((count, top), dtype=np.int64),
            top=np.zeros((count, top), dtype=np.float32),
        )

    def fill(self, logits: torch.Tensor, first: int) -> None:
        """Score the tokens after position `first` with logits of shape [tokens, vocabulary]."""
        found = self.found
        for start in range(0, len(logits), ROWS_AT_ONCE):
            logs = logits[start : start + ROWS_AT_ONCE].float().log_softmax(-1)
            at = slice(first + start, first + start + len(logs))
            ids = torch.from_numpy(found.token_ids[1:][at]).to(logs.device)
            chosen = logs.gather(1, ids[:, None])
            values, likeliest = logs.topk(found.top.shape[1])
            found.logprobs[at] = chosen[:, 0].cpu()
            found.ranks[at] = ((logs > chosen).sum(1) + 1).cpu()
            found.top_ids[at] = likeliest.cpu()
            found.top[at] = values.cpu()


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens of one request in a batch: rows `start` to `end`, from position `first`."""

    sampler: Any
    start: int
    end: int
    first: int


@dataclass(frozen=True, slots=True)
class _Marked:
    """Request as `mark_complete_blocks` reads it, with other token ids."""

    request_id: str
    status: Any
    initial_tokens: list[int]
    generated_tokens: list[int]


class ScoringProcessors(ContinuousBatchingLogitsProcessorList):
    """Logits processors that also note which rows of the next forward pass score a prompt.

    The manager calls `prepare_tensor_args` with the complete batch immediately before the pass.
    `watchers` are called with its spans.
    """

    def __init__(
        self,
        processors: LogitsProcessorList,
        watchers: Sequence[Callable[[Sequence[Span]], None]] = (),
    ) -> None:
        super().__init__(processors, per_request_processors=True)
        self._watchers = watchers
        self._spans: list[Span] = []
        self._kept = 0

    def prepare_tensor_args(
        self, requests_in_batch: list[FutureRequestState], arg_storage: torch.Tensor
    ) -> torch.Tensor:
        """Note the rows to score."""
        spans = []
        row = 0
        for request in requests_in_batch:
            state, length = request.state, request.query_length
            sampler = state.logit_processor_kwargs["sampler"]
            first = state.position_offset - length  # the manager has advanced it already
            spans.append(Span(sampler, row, row + length, first))
            row += length
        self._spans = [found for span in spans if (found := _scored(span)) is not None]
        for watch in self._watchers:
            watch(spans)
        return super().prepare_tensor_args(requests_in_batch, arg_storage)

    def hook(self, model: torch.nn.Module) -> None:
        """Register the hooks that keep the logits of these rows, and score with them."""
        model.register_forward_pre_hook(self._keep_rows, with_kwargs=True)
        model.register_forward_hook(self._score_rows, with_kwargs=True)

    def _keep_rows(
        self, _model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        keep = kwargs.get("logits_to_keep")
        if not self._spans or keep is None:
            return None
        self._kept = len(keep)
        rows = [
            torch.arange(span.start, span.end, dtype=keep.dtype, device=keep.device)
            for span in self._spans
        ]
        return args, {**kwargs, "logits_to_keep": torch.cat([keep, *rows])}

    def _score_rows(
        self, _model: Any, _args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        if not self._spans:
            return
        logits, at = output.logits[0], self._kept
        sliced = "logits_to_keep" in kwargs
        for span in self._spans:
            start = at if sliced else span.start
            at += span.end - span.start
            try:
                span.sampler.prompt_scores.fill(
                    logits[start : start + span.end - span.start], span.first
                )
            except Exception as error:  # an error here would end the requests of all users
                logger.exception("scoring failed for one prompt")
                span.sampler.error = error
        if sliced:
            output.logits = output.logits[:, : self._kept]


def _scored(span: Span) -> Span | None:
    """Return the part of a span whose tokens score the next one of the prompt, if it has any."""
    scores: PromptScores | None = span.sampler.prompt_scores
    if scores is None:
        return None
    count = min(span.end - span.start, len(scores.found.logprobs) - span.first)
    return replace(span, end=span.start + count) if count > 0 else None


def watch_prefix_matches(manager: Any, sampler_of: Mapping[str, Any]) -> None:
    """Record the prompt tokens that are found in the cache; prompts to score use no cached ones.

    A cached token is not computed again, so it would have no logits. Requests use the cached tokens
    of their own adapter only. transformers (5.19) has no such settings per request: the cache that
    the manager's thread creates is changed.
    """
    create: Callable[[], Any] = manager._create_batch_processor

    def create_watched() -> Any:
        processor = create()
        cache = processor.cache
        search: Callable[[str, list[int]], int] = type(cache).search_prefix_match.__get__(cache)
        mark: Callable[[Any, Any], None] = type(cache).mark_complete_blocks.__get__(cache)

        def search_prefix_match(request_id: str, prompt_ids: list[int]) -> int:
            sampler = sampler_of.get(request_id)
            if sampler is None or sampler.computes_all:
                return 0
            found = search(request_id, sampler.salted(prompt_ids))
            if not sampler.begun:
                sampler.cached_tokens = found
            return found

        def mark_complete_blocks(state: Any, complete_blocks: dict[str, int]) -> None:
            sampler = state.logit_processor_kwargs["sampler"]
            if sampler.lora is not None:
                ids = sampler.salted(state.initial_tokens + state.generated_tokens)
                state = _Marked(state.request_id, state.status, ids, [])
            mark(state, complete_blocks)

        cache.search_prefix_match = search_prefix_match
        cache.mark_complete_blocks = mark_complete_blocks
        return processor

    manager._create_batch_processor = create_watched
