"""Embeddings of prompts in transformers' continuous batching: the mean of their hidden states."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ochat_ray.errors import UserError
from ochat_ray.serve.engines.prompt_scores import Span

logger = logging.getLogger(__name__)


class PromptMean:
    """Sum of the last hidden states of one prompt, filled as its tokens are prefilled."""

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens
        self._sum: torch.Tensor | None = None

    def fill(self, states: torch.Tensor, first: int) -> None:
        """Add hidden states of shape [tokens, size], from position `first`."""
        count = self._tokens - first  # without tokens of the answer
        new = states[:count].double().sum(0).cpu()
        # A request that was evicted from the cache begins again.
        self._sum = new if first == 0 or self._sum is None else self._sum + new

    @property
    def mean(self) -> np.ndarray | None:
        """Mean over the prompt's tokens, float32."""
        return None if self._sum is None else (self._sum / self._tokens).float().numpy()


class PromptMeans:
    """Hook of the model below the head, which reads the hidden states of prompts to embed.

    Raises:
        UserError: The model has no part without its head.
    """

    def __init__(self, model: Any) -> None:
        body = model.base_model
        if body is model:
            raise UserError("embeddings=true: this model has no part without its head")
        self._spans: list[Span] = []
        body.register_forward_hook(self._read)

    def begin(self, spans: Sequence[Span]) -> None:
        """Note which tokens of the next forward pass are of prompts to embed."""
        self._spans = [span for span in spans if span.sampler.prompt_mean is not None]

    def _read(self, _module: Any, _inputs: Any, output: Any) -> None:
        for span in self._spans:
            try:
                states = output.last_hidden_state[0, span.start : span.end]
                span.sampler.prompt_mean.fill(states, span.first)
            except Exception as error:  # an error here would end the requests of all users
                logger.exception("embedding failed for one prompt")
                span.sampler.error = error
