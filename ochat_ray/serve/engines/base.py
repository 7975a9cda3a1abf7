"""Engine interface: prompt ids in, a stream of token deltas out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from ochat_ray.serve.protocol.tools import CallRules

FinishReason = Literal["stop", "length"]

_GRAMMARS = frozenset(
    "guided_regex guided_choice guided_grammar structured_outputs.regex structured_outputs.choice"
    " structured_outputs.grammar".split()
)

UNSUPPORTED: Mapping[str, frozenset[str]] = {
    "transformers": frozenset(),
    "vllm": _GRAMMARS | {"embeddings"},
    "scripted": _GRAMMARS
    | frozenset(
        "min_p repetition_penalty presence_penalty frequency_penalty logit_bias response_format"
        " seed echo prompt_logprobs bad_words tools guided_json structured_outputs.json"
        " structured_outputs.json_object adapters embeddings".split()
    ),
}
"""Request fields and arguments that each engine does not support, by engine name.

Such requests are rejected, and the server does not start with such arguments.
"""


class EngineError(Exception):
    """Failure of a request or of the engine; the message may be sent to a client."""


class EngineUnavailableError(EngineError):
    """No engine can accept the request now; a retry may succeed."""


class EngineOverloadedError(EngineError):
    """Engine queue is full."""


class RequestRefusedError(EngineError):
    """Request that the engine must not run. The ingress validates first, so this is rare.

    Some engines terminate for all users on such a request, so each engine validates before
    submitting. `param` names the field of the request, if there is one.
    """

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param

    def __reduce__(self) -> tuple[type[RequestRefusedError], tuple[str, str | None]]:
        return type(self), (str(self), self.param)


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapter:
    """LoRA adapter: its name, the directory of its files, and the digest of their content."""

    name: str
    directory: str
    digest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """Sampling parameters of one request. The defaults have no effect.

    They apply in vLLM's order: `logit_bias`, `json_schema`, penalties, `temperature`, `min_p`,
    `top_k`, `top_p`.

    Attributes:
        max_tokens: Maximum tokens of the answer.
        temperature: Below 1e-5 is greedy, as in vLLM.
        top_p: Below 1e-6 is greedy.
        top_k: 0 samples from all tokens.
        min_p: Minimum probability of a token, relative to the most likely one's.
        repetition_penalty: Applies to prompt and answer, as in CTRL: logits of previous tokens are
            divided by it if positive, multiplied if negative.
        presence_penalty: Subtracted from the logits of tokens in the answer so far.
        frequency_penalty: Same, multiplied by the token's count in the answer so far.
        logit_bias: Pairs of token id and the value added to its logit.
        json_schema: JSON Schema, as JSON, that the answer's text must match; a stop id is allowed
            only where the text is complete.
        grammar: Same, a grammar in llguidance's Lark syntax or GBNF.
        calls: Same, calls of tools. At most one of the three is given.
        top_logprobs: None reports no log-probabilities; N reports those of the chosen token and of
            the N most likely ones, from the model's distribution before any filter.
        prompt_logprobs: Same, for the tokens of the prompt.
        seed: Same seed, same noise; None seeds randomly.
        stop_ids: Token ids that end generation with reason "stop".
        min_tokens: Tokens before which no stop id is possible.
        bad_words: Sequences of token ids that the answer does not contain.
        adapter: LoRA adapter that the model runs with; None is the model as it is.
        embed: Whether to report the embedding of the prompt.
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
    grammar: str | None = None
    calls: CallRules | None = None
    top_logprobs: int | None = None
    prompt_logprobs: int | None = None
    seed: int | None = None
    stop_ids: tuple[int, ...] = ()
    min_tokens: int = 0
    bad_words: tuple[tuple[int, ...], ...] = ()
    adapter: Adapter | None = None
    embed: bool = False

    @property
    def greedy(self) -> bool:
        """True if the most likely remaining token is always chosen.

        Logits divided by a smaller temperature, and a smaller `top_p`, exceed what float32 holds.
        """
        return self.temperature < 1e-5 or self.top_k == 1 or self.top_p < 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenLogprobs:
    """Log-probability of a token (natural logarithm), and the most likely alternatives.

    `logprob` is None only for the first token of a prompt. `top` holds (token id, logprob) in
    descending order; the token itself may be among them. `rank` is 1 for the most likely token; it
    is 0 for generated tokens, whose rank is not computed.
    """

    token_id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()
    rank: int = 0


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PromptLogprobs:
    """Log-probabilities of a prompt of T tokens, as arrays: long prompts have many.

    Attributes:
        token_ids: The prompt, [T].
        logprobs: Those of the tokens after the first, [T - 1].
        ranks: Their ranks, [T - 1].
        top_ids: The N most likely token ids at their positions, [T - 1, N].
        top: The log-probabilities of these, [T - 1, N], in descending order.
    """

    token_ids: np.ndarray
    logprobs: np.ndarray
    ranks: np.ndarray
    top_ids: np.ndarray
    top: np.ndarray

    def entries(self) -> list[TokenLogprobs]:
        """Return one entry per token."""
        first, *token_ids = self.token_ids.tolist()
        arrays = (self.logprobs, self.ranks, self.top_ids, self.top)
        rows = zip(token_ids, *(array.tolist() for array in arrays), strict=True)
        return [
            TokenLogprobs(token_id=first, logprob=None),
            *(
                TokenLogprobs(
                    token_id=token_id,
                    logprob=logprob,
                    top=tuple(zip(top_ids, top, strict=True)),
                    rank=rank,
                )
                for token_id, logprob, rank, top_ids, top in rows
            ),
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Delta:
    """Tokens since the previous delta, at least one; a request's last delta has a finish reason.

    A stop token that ended generation is the last of `token_ids`. `logprobs` has one entry per
    token if requested, and is empty otherwise. The first delta of a request has the prompt's
    log-probabilities, if requested, and the number of prompt tokens found in the engine's cache;
    None means that the engine does not report it. It also has the prompt's embedding, if requested:
    the mean over its tokens of the last hidden states, [hidden size], float32.
    """

    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: PromptLogprobs | None = None
    cached_tokens: int | None = None
    embedding: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Capacity:
    """Size and current load of an engine.

    `running` requests are in the batch; `waiting` ones are queued or preempted.
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
        """Generate an answer; closing the generator early cancels the request.

        Raises:
            RequestRefusedError: Raised before the first delta.
            EngineError: The engine failed.
        """
        ...

    def cancel(self, request_id: str) -> None:
        """Cancel a request and free its slot; an unknown id has no effect."""
        ...

    def check_health(self) -> None:
        """Raise EngineError if the engine can no longer generate."""
        ...

    def capacity(self) -> Capacity:
        """Return the engine's size and load."""
        ...

    def close(self) -> None:
        """Stop permanently; requests in flight end with an error."""
        ...


def validate(
    prompt_ids: list[int], sampling: Sampling, *, context_length: int, vocabulary: int
) -> None:
    """Reject requests that would end an engine's loop, and with it every other user's request.

    Raises:
        RequestRefusedError: The request is invalid; the message gives the reason.
    """
    if not prompt_ids:
        raise RequestRefusedError("the prompt is empty")
    if not 0 <= min(prompt_ids) <= max(prompt_ids) < vocabulary:
        raise RequestRefusedError(
            f"the prompt has a token id outside the model's {vocabulary} tokens"
        )
    for field, ids in (
        ("logit_bias", [token_id for token_id, _ in sampling.logit_bias]),
        ("stop_ids", sampling.stop_ids),
        ("bad_words", [token_id for word in sampling.bad_words for token_id in word]),
    ):
        if any(not 0 <= token_id < vocabulary for token_id in ids):
            raise RequestRefusedError(f"{field} has an id outside the model's {vocabulary} tokens")
    if not all(sampling.bad_words):
        raise RequestRefusedError("bad_words has an empty sequence")
    if (sampling.json_schema or sampling.grammar or sampling.calls) and not sampling.stop_ids:
        problem = "json_schema, grammar and calls need a stop id, to end the answer with"
        raise RequestRefusedError(problem)
    if sampling.max_tokens < 1:
        raise RequestRefusedError("max_tokens is below 1")
    total = len(prompt_ids) + sampling.max_tokens
    if total > context_length:
        raise RequestRefusedError(
            f"prompt and answer of {total} tokens are above the context of {context_length}"
        )
