"""Response bodies of the API: models for complete answers, dicts for stream chunks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field

from ochat_ray.serve.engines.base import FinishReason


def _is_none(value: Any) -> bool:
    return value is None


class PromptTokensDetails(BaseModel):
    """Prompt tokens that were in the engine's cache and not computed again."""

    cached_tokens: int


class Usage(BaseModel):
    """Prompt tokens and generated tokens; the end-of-turn token counts as generated.

    `prompt_tokens_details` is left out if the engine does not report it.
    """

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | None = Field(None, exclude_if=_is_none)

    @classmethod
    def of(
        cls, prompt_tokens: int, completion_tokens: int, cached_tokens: int | None = None
    ) -> Usage:
        """Return the usage with its total."""
        details = None
        if cached_tokens is not None:
            details = PromptTokensDetails(cached_tokens=cached_tokens)
        return cls(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            total_tokens=prompt_tokens + completion_tokens,
            prompt_tokens_details=details,
        )


class PromptLogprob(BaseModel):
    """Log-probability of a token at a position of the prompt; rank 1 is the most likely token."""

    logprob: float
    rank: int
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]
"""One entry per token of the prompt, by token id; null for the first token, as in vLLM."""


class TopLogprob(BaseModel):
    """Likely token; `bytes` are its UTF-8, since it may be part of a character."""

    token: str
    logprob: float
    bytes: list[int]


class ContentLogprob(TopLogprob):
    """Token of the answer, and the most likely ones at its position."""

    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(BaseModel):
    """Natural-log probabilities of an answer's tokens, without stop tokens."""

    content: list[ContentLogprob]
    refusal: None = None


class CalledFunction(BaseModel):
    """Function of a call; `arguments` is JSON."""

    name: str
    arguments: str


class MadeCall(BaseModel):
    """Call of a tool."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class AssistantMessage(BaseModel):
    """Message with the answer. `content` is null beside calls without text."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    tool_calls: list[MadeCall] | None = Field(default=None, exclude_if=_is_none)


ChatReason = FinishReason | Literal["tool_calls"]


class ChatChoice(BaseModel):
    """One answer of a chat completion."""

    index: int
    message: AssistantMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: ChatReason


class ChatCompletion(BaseModel):
    """Response to a chat request without streaming."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: PromptLogprobs | None = Field(None, exclude_if=_is_none)


class TextLogprobs(BaseModel):
    """Log-probabilities in the older format; `text_offset` counts characters from the start.

    `top_logprobs` has the token itself in addition to the most likely ones. The first token of an
    echoed prompt has null in both lists.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(BaseModel):
    """One continuation of a text completion."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: FinishReason
    prompt_logprobs: PromptLogprobs | None = Field(None, exclude_if=_is_none)


class TextCompletion(BaseModel):
    """Response to a completions request without streaming."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: Usage


class Tokens(BaseModel):
    """Response of /tokenize."""

    count: int
    max_model_len: int
    tokens: list[int]


class Detokenized(BaseModel):
    """Response of /detokenize."""

    prompt: str


class ServerLoad(BaseModel):
    """Response of /load: the number of other requests in progress in this ingress replica."""

    server_load: int


class Training(BaseModel):
    """Provenance of a model from its ochat.json; `digest` is the SHA-256 of that file's content."""

    recipe: str | None = None
    model_type: str | None = None
    data_digest: str | None = None
    tokenizer: str | None = None
    step: int | None = None
    digest: str | None = None


class Model(BaseModel):
    """Entry of /v1/models. `created` is in seconds since the epoch.

    An adapter has the name of its base as `parent`, and the SHA-256 of its files' content.
    """

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "ochat_ray"
    max_model_len: int
    training: Training | None = None
    parent: str | None = Field(default=None, exclude_if=_is_none)
    digest: str | None = Field(default=None, exclude_if=_is_none)


class NotServed(BaseModel):
    """Sub-directory of `adapters` that is not served, with the reason."""

    id: str
    reason: str


class ModelList(BaseModel):
    """Response of /v1/models."""

    object: Literal["list"] = "list"
    data: list[Model]
    not_served: list[NotServed] | None = Field(default=None, exclude_if=_is_none)


class Health(BaseModel):
    """Response of /health."""

    status: Literal["ready", "not ready"]


class Version(BaseModel):
    """Response of /version."""

    version: str
    engine: str


def chat_chunk(
    head: Mapping[str, Any],
    index: int,
    *,
    delta: Mapping[str, Any],
    logprobs: ChoiceLogprobs | None = None,
    finish_reason: ChatReason | None = None,
) -> dict[str, Any]:
    """Return one event of a chat stream: a delta, or the finish reason with an empty delta."""
    choice = {
        "index": index,
        "delta": delta,
        "logprobs": logprobs and logprobs.model_dump(),
        "finish_reason": finish_reason,
    }
    return {**head, "choices": [choice]}


def text_chunk(
    head: Mapping[str, Any],
    index: int,
    *,
    text: str,
    logprobs: TextLogprobs | None = None,
    finish_reason: FinishReason | None = None,
) -> dict[str, Any]:
    """Return one event of a text stream."""
    choice = {
        "index": index,
        "text": text,
        "logprobs": logprobs and logprobs.model_dump(),
        "finish_reason": finish_reason,
    }
    return {**head, "choices": [choice]}


def usage_chunk(head: Mapping[str, Any], usage: Usage) -> dict[str, Any]:
    """Return the usage event, the last event of a stream for which usage was requested."""
    return {**head, "choices": [], "usage": usage.model_dump()}
