"""Use a sampler per request in transformers' continuous batching."""

from __future__ import annotations

import collections
import logging
from collections.abc import Sequence
from typing import Any

import torch
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessor,
)
from transformers.generation.continuous_batching.requests import FutureRequestState

from ochat_ray.serve.engines.base import Sampling, TokenLogprobs
from ochat_ray.serve.engines.grammar import Grammar
from ochat_ray.serve.engines.lora import Lora, salted
from ochat_ray.serve.engines.prompt_means import PromptMean
from ochat_ray.serve.engines.prompt_scores import PromptScores
from ochat_ray.serve.engines.sampler import adjust, choose, log_probabilities

logger = logging.getLogger(__name__)


class RequestSampler:
    """Sampling rules and state of one request.

    Attributes:
        logprobs: One entry per sampled token, if requested.
        prompt_scores: Log-probabilities of the prompt, if requested.
        prompt_mean: Mean of the prompt's hidden states, if requested.
        lora: Adapter that the model runs with.
        cached_tokens: Prompt tokens that were in the cache.
        error: First exception; the tokens after it are meaningless.
    """

    def __init__(
        self, prompt_ids: Sequence[int], sampling: Sampling, seed: int, grammar: Grammar | None
    ) -> None:
        self.logprobs: list[TokenLogprobs] = []
        self.error: Exception | None = None
        self.cached_tokens = 0
        self.prompt_scores: PromptScores | None = None
        self.prompt_mean: PromptMean | None = None
        self.lora: Lora | None = None
        self._sampling = sampling
        self._seed = seed
        self._grammar = grammar
        self._position = len(prompt_ids)
        self._prompt_ids = torch.tensor(sorted(set(prompt_ids)))
        self._counts: collections.Counter[int] = collections.Counter()
        self._answer: list[int] = []
        self._adjusts = grammar is not None or bool(
            sampling.logit_bias
            or sampling.repetition_penalty != 1
            or sampling.presence_penalty
            or sampling.frequency_penalty
            or sampling.min_tokens
            or sampling.bad_words
        )

    def __deepcopy__(self, memo: Any) -> RequestSampler:
        """Return the same object.

        The manager copies a request that it evicts from a full cache and restarts it with the
        answer so far as part of the prompt. For the sampling rules that is the same answer.
        """
        return self

    @property
    def begun(self) -> bool:
        """True once the answer has a token."""
        return bool(self._answer)

    @property
    def computes_all(self) -> bool:
        """True if no token of the prompt may be taken from the cache."""
        return self.prompt_scores is not None or self.prompt_mean is not None

    def salted(self, token_ids: Sequence[int]) -> list[int]:
        """Return token ids by which the cache recognizes a prompt for this adapter."""
        return salted(token_ids, self.lora)

    def draw(self, scores: torch.Tensor) -> int:
        """Sample the next token from logits, [vocabulary], which may be modified; never raise."""
        if self.error is not None:
            return 0
        try:
            return self._draw(scores)
        except Exception as error:
            logger.exception("sampling failed for one request")
            self.error = error
            return 0

    def _draw(self, scores: torch.Tensor) -> int:
        sampling, top = self._sampling, self._sampling.top_logprobs
        logs = None if top is None else scores.log_softmax(-1)
        if self._adjusts:
            allowed = None if self._grammar is None else self._grammar.allowed(sampling.stop_ids)
            adjust(
                scores,
                sampling,
                prompt_ids=self._prompt_ids,
                answer_counts=self._counts,
                allowed=allowed,
                banned=self._banned(),
            )
        token_id = choose(scores, sampling, seed=self._seed, position=self._position)
        if self._grammar is not None and token_id not in sampling.stop_ids:
            self._grammar.advance(token_id)
        if logs is not None and top is not None:
            self.logprobs.append(log_probabilities(logs, token_id, top))
        self._counts[token_id] += 1
        self._answer.append(token_id)
        self._position += 1
        return token_id

    def _banned(self) -> list[int]:
        """Return the ids that would stop the answer too early, or complete a bad word."""
        answer, sampling = self._answer, self._sampling
        banned = [
            word[-1]
            for word in sampling.bad_words
            if len(word) <= len(answer) + 1
            and tuple(answer[len(answer) + 1 - len(word) :]) == word[:-1]
        ]
        return banned + list(sampling.stop_ids if len(answer) < sampling.min_tokens else ())


class BatchSampler(ContinuousBatchingLogitsProcessor):
    """Logits processor after which the manager's argmax yields each row's sampled token.

    transformers' own per-request processors sort the entire vocabulary twice per row, support
    neither temperature 0 nor a seed, and break ties of a greedy row arbitrarily.

    A processor receives one int32 per row, which cannot hold a request's rules. They are stored by
    `prepare_tensor_args`, which the manager's thread calls immediately before the forward pass.
    That holds without async batching and CUDA graphs, so the engine disables both.
    """

    supported_kwargs = {"sampler": RequestSampler}  # noqa: RUF012 - declared so in the base class
    ignored_kwargs = ()

    def __init__(self) -> None:
        self._rows: list[RequestSampler] = []

    def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
        """Fill the tensor with zeros; its values are never read."""
        int32_tensor.zero_()

    def prepare_tensor_args(
        self, requests_with_new_token: Sequence[FutureRequestState]
    ) -> torch.Tensor:
        """Store the samplers of the next rows."""
        self._rows = [
            request.state.logit_processor_kwargs["sampler"] for request in requests_with_new_token
        ]
        return torch.zeros(len(self._rows), dtype=torch.int32)

    def __call__(
        self,
        scores: torch.Tensor,
        tensor_arg: torch.Tensor,  # noqa: ARG002
    ) -> torch.Tensor:
        """Sample in place: logits of shape [rows, vocabulary]."""
        # A prompt prefilled in chunks has a row as well, after all others, which is not read.
        assert len(self._rows) <= len(scores), "rows of another batch"
        drawn = [row.draw(scores[index]) for index, row in enumerate(self._rows)]
        # argmax treats NaN as the maximum, so failed rows are cleared.
        for index, row in enumerate(self._rows):
            if row.error is not None:
                scores[index] = 0
        scores[range(len(drawn)), drawn] = torch.inf
        return scores
