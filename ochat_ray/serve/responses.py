"""What a client is answered: OpenAI's objects, as models for whole answers and dicts for chunks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel

from ochat_ray.serve.engines.base import FinishReason


class Usage(BaseModel):
    """Tokens that went in and that were generated; the end-of-turn token counts as generated."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, prompt_tokens: int, completion_tokens: int) -> Usage:
        """Usage with its sum."""
        return cls(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            total_tokens=prompt_tokens + completion_tokens,
        )


class TopLogprob(BaseModel):
    """A likely token; `bytes` are its UTF-8, since it need not be whole characters."""

    token: str
    logprob: float
    bytes: list[int]


class ContentLogprob(TopLogprob):
    """A token of the answer, and the likeliest ones in its place."""

    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(BaseModel):
    """Natural logarithms of the probabilities of an answer's tokens, stop tokens left out."""

    content: list[ContentLogprob]
    refusal: None = None


class AssistantMessage(BaseModel):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: AssistantMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(BaseModel):
    """The response to a chat request without streaming."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class TextLogprobs(BaseModel):
    """The same in the older form; `text_offset` counts characters from the answer's start."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class TextChoice(BaseModel):
    """One continuation."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: FinishReason


class TextCompletion(BaseModel):
    """The response to a completions request without streaming."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage


class Tokens(BaseModel):
    """The response of /tokenize."""

    count: int
    max_model_len: int
    tokens: list[int]


class Training(BaseModel):
    """Where a model comes from, as far as its ochat.json says; `digest` is SHA-256 of all of it."""

    recipe: str | None = None
    model_type: str | None = None
    data_digest: str | None = None
    tokenizer: str | None = None
    step: int | None = None
    digest: str | None = None


class Model(BaseModel):
    """One entry of /v1/models. `created` is in seconds since the epoch."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "ochat_ray"
    max_model_len: int
    training: Training | None = None


class ModelList(BaseModel):
    """The response of /v1/models."""

    object: Literal["list"] = "list"
    data: list[Model]


class Health(BaseModel):
    """The response of /health."""

    status: Literal["ready", "not ready"]


class Version(BaseModel):
    """The response of /version."""

    version: str
    engine: str


def chat_chunk(
    head: Mapping[str, Any],
    index: int,
    *,
    delta: Mapping[str, str],
    logprobs: ChoiceLogprobs | None = None,
    finish_reason: FinishReason | None = None,
) -> dict[str, Any]:
    """One event of a chat stream: a delta, or the finish reason with an empty delta."""
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
    """One event of a text stream."""
    choice = {
        "index": index,
        "text": text,
        "logprobs": logprobs and logprobs.model_dump(),
        "finish_reason": finish_reason,
    }
    return {**head, "choices": [choice]}


def usage_chunk(head: Mapping[str, Any], usage: Usage) -> dict[str, Any]:
    """The event before the last of a stream that was asked for the usage."""
    return {**head, "choices": [], "usage": usage.model_dump()}
