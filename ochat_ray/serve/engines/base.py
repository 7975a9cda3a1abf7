"""What every engine is to the server: prompt ids in, a stream of token deltas out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

FinishReason = Literal["stop", "length"]

UNSUPPORTED: Mapping[str, frozenset[str]] = {
    "transformers": frozenset(),
    "vllm": frozenset(),
    "scripted": frozenset(
        "min_p repetition_penalty presence_penalty frequency_penalty logit_bias response_format"
        " seed".split()
    ),
}
"""The engines by name, and the request fields that each cannot do; those are refused."""


class EngineError(Exception):
    """The engine cannot go on with this request, or at all; its text is fit for a client."""


class EngineUnavailableError(EngineError):
    """No engine can take the request now; another try may find one."""


class EngineOverloadedError(EngineError):
    """The engine's queue is full."""


class RequestRefusedError(EngineError):
    """The request is one that the engine must not run. The ingress checks first, so this is rare.

    Some engines end for every user on such a request, so each engine validates before it submits.
    `param` names the request's field where it is one.
    """

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param

    def __reduce__(self) -> tuple[type[RequestRefusedError], tuple[str, str | None]]:
        return type(self), (str(self), self.param)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How to choose tokens, and when to stop. Every default changes nothing.

    Filters apply in vLLM's order: `logit_bias`, `json_schema`, penalties, `temperature`, `min_p`,
    `top_k`, `top_p`.

    Attributes:
        temperature: 0 is greedy.
        top_p: 0 is greedy.
        top_k: 0 chooses among all tokens.
        min_p: leaves tokens of at least that share of the most likely one's probability.
        repetition_penalty: over prompt and answer, as in CTRL: logits of tokens seen are divided
            by it if positive, multiplied if negative.
        presence_penalty: subtracted from the logits of tokens in the answer so far.
        frequency_penalty: the same, times how often each is in the answer so far.
        logit_bias: (token id, what is added to its logit).
        json_schema: a JSON Schema, as JSON, that the answer's text must match; a stop id is
            possible only where the text is complete.
        top_logprobs: None reports no log-probabilities; N reports the chosen token's and those of
            the N most likely ones, of the model's own distribution before any filter.
        seed: the same seed draws the same noise; None draws afresh.
        stop_ids: end generation with reason "stop".
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    json_schema: str | None = None
    top_logprobs: int | None = None
    seed: int | None = None
    stop_ids: tuple[int, ...] = ()

    @property
    def greedy(self) -> bool:
        """Whether the most likely token that is left is always taken."""
        return self.temperature == 0 or self.top_k == 1 or self.top_p == 0


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenLogprobs:
    """The natural logarithm of a generated token's probability, and the likeliest in its place.

    `top` holds (token id, logprob), the likeliest first; the chosen one may be among them.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Delta:
    """Tokens since the delta before, one or more; the last delta of a request has a reason.

    A stop token that ended generation is the last of `token_ids`. `logprobs` has one entry a
    token where they were asked for, and is empty otherwise.
    """

    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Capacity:
    """What an engine can hold, and what it holds now.

    `running` requests are in the batch; `waiting` ones are not yet, or not at the moment.
    """

    context_length: int
    kv_tokens: int
    kv_tokens_used: int
    vocabulary: int
    running: int
    waiting: int


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


def validate(
    prompt_ids: list[int], sampling: Sampling, *, context_length: int, vocabulary: int
) -> None:
    """Refuse what would end some engine's loop, and with it every other user's request.

    Raises:
        RequestRefusedError: the line says what is wrong.
    """
    if not prompt_ids:
        raise RequestRefusedError("the prompt is empty")
    if not 0 <= min(prompt_ids) <= max(prompt_ids) < vocabulary:
        raise RequestRefusedError(
            f"the prompt has a token id outside the model's {vocabulary} tokens"
        )
    if any(not 0 <= token_id < vocabulary for token_id, _ in sampling.logit_bias):
        raise RequestRefusedError(f"logit_bias has an id outside the model's {vocabulary} tokens")
    if sampling.max_tokens < 1:
        raise RequestRefusedError("max_tokens is below 1")
    total = len(prompt_ids) + sampling.max_tokens
    if total > context_length:
        raise RequestRefusedError(
            f"prompt and answer of {total} tokens are above the context of {context_length}"
        )
