"""Deterministic engine without a model, for tests and measurements of the surrounding code."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

from ochat_ray.serve.engines.base import (
    Capacity,
    Delta,
    EngineUnavailableError,
    FinishReason,
    RequestRefusedError,
    Sampling,
    TokenLogprobs,
    validate,
)

LOGPROB = -0.25
"""Log-probability reported for every token."""


class ScriptedEngine:
    """Engine that emits its script, one token per delta, then the first of the request's stop ids.

    A script of None repeats the prompt. `pause_s` is slept before every delta; even 0 yields to
    other requests.
    """

    def __init__(
        self,
        *,
        vocabulary: int,
        context_length: int,
        script: Sequence[int] | None = None,
        pause_s: float = 0.0,
    ) -> None:
        self._vocabulary = vocabulary
        self._context_length = context_length
        self._script = script
        self._pause_s = pause_s
        self._cancelled: dict[str, bool] = {}
        self._closed = False

    async def submit(
        self, request_id: str, prompt_ids: list[int], sampling: Sampling
    ) -> AsyncGenerator[Delta, None]:
        """Generate an answer; see `Engine.submit`."""
        validate(
            prompt_ids,
            sampling,
            context_length=self._context_length,
            vocabulary=self._vocabulary,
        )
        if request_id in self._cancelled:
            raise RequestRefusedError(f"request id {request_id} is in use")
        if sampling.grammar is not None:
            raise RequestRefusedError("this engine has no grammars")
        if sampling.adapter is not None or sampling.embed:
            raise RequestRefusedError("this engine has no adapters and no embeddings")
        self._cancelled[request_id] = False
        try:
            for count in range(1, sampling.max_tokens + 1):
                await asyncio.sleep(self._pause_s)
                self.check_health()
                if self._cancelled[request_id]:
                    return
                token_id = self._token(count - 1, prompt_ids, sampling)
                reason: FinishReason | None = None
                if token_id in sampling.stop_ids and count > sampling.min_tokens:
                    reason = "stop"
                elif count == sampling.max_tokens:
                    reason = "length"
                yield _delta(token_id, reason, sampling)
                if reason is not None:
                    return
        finally:
            del self._cancelled[request_id]

    def cancel(self, request_id: str) -> None:
        """Cancel a request; see `Engine.cancel`."""
        if request_id in self._cancelled:
            self._cancelled[request_id] = True

    def check_health(self) -> None:
        """Raise if the engine is closed; see `Engine.check_health`."""
        if self._closed:
            raise EngineUnavailableError("the engine is closed")

    def capacity(self) -> Capacity:
        """Return the engine's size and load; see `Engine.capacity`."""
        return Capacity(
            context_length=self._context_length,
            kv_tokens=self._context_length,
            kv_tokens_used=0,
            vocabulary=self._vocabulary,
            running=len(self._cancelled),
            waiting=0,
        )

    def close(self) -> None:
        """Stop permanently; see `Engine.close`."""
        self._closed = True

    def _token(self, index: int, prompt_ids: list[int], sampling: Sampling) -> int:
        if self._script is None:
            return prompt_ids[index % len(prompt_ids)]
        if index < max(len(self._script), sampling.min_tokens) or not sampling.stop_ids:
            return self._script[index % len(self._script)]
        return sampling.stop_ids[0]


def _delta(token_id: int, reason: FinishReason | None, sampling: Sampling) -> Delta:
    logprobs: tuple[TokenLogprobs, ...] = ()
    if sampling.top_logprobs is not None:
        top = ((token_id, LOGPROB),)[: sampling.top_logprobs]
        logprobs = (TokenLogprobs(token_id=token_id, logprob=LOGPROB, top=top),)
    return Delta(token_ids=(token_id,), finish_reason=reason, logprobs=logprobs)
