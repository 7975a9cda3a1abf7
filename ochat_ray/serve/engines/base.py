"""What every engine is to the server: prompt ids in, a stream of token deltas out."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Literal, Protocol

FinishReason = Literal["stop", "length"]


class EngineError(Exception):
    """The engine cannot go on with this request, or at all; its text is fit for a client."""


class EngineUnavailableError(EngineError):
    """No engine can take the request now; another try may find one."""


class EngineOverloadedError(EngineError):
    """The engine's queue is full."""


class RequestRefusedError(EngineError):
    """The request is one that the engine must not run. The ingress checks first, so this is rare.

    Some engines end for every user on such a request, so each engine validates before it submits.
    """


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How to choose tokens, and when to stop.

    `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 choose among all tokens. The same `seed`
    draws the same noise; None draws afresh. `stop_ids` end generation with reason "stop".
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop_ids: tuple[int, ...] = ()

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0 or self.top_k == 1 or self.top_p == 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Delta:
    """Tokens since the delta before, one or more; the last delta of a request has a reason.

    A stop token that ended generation is the last of `token_ids`.
    """

    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Capacity:
    """What an engine can hold, in tokens and requests, and how many requests it has now."""

    context_length: int
    kv_tokens: int
    vocabulary: int
    running: int


class Engine(Protocol):
    """One model in one process."""

    def submit(
        self, request_id: str, prompt_ids: list[int], sampling: Sampling
    ) -> AsyncGenerator[Delta, None]:
        """Generate; closing the generator early cancels the request.

        Raises:
            RequestRefusedError: before the first delta.
            EngineError: the engine failed.
        """
        ...

    def cancel(self, request_id: str) -> None:
        """Stop a request, whose slot is then free; nothing happens if there is no such request."""
        ...

    def check_health(self) -> None:
        """Raise EngineError if the engine cannot generate any more."""
        ...

    def capacity(self) -> Capacity:
        """Its size and load."""
        ...

    def close(self) -> None:
        """Stop for good; requests in flight end with an error."""
        ...
