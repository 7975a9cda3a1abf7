"""OpenAI's chat protocol: what a request may say, what a response looks like, what an error is.

Requests are strict: a field that is not here is refused by name, never ignored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.responses import JSONResponse

from ochat_ray.errors import UserError
from ochat_ray.schema import Turn
from ochat_ray.serve.engines.base import (
    EngineError,
    EngineOverloadedError,
    EngineUnavailableError,
    FinishReason,
    RequestRefusedError,
    Sampling,
)

# ------------------------------------------------------------------------------------- errors

_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class ApiError(Exception):
    """An error as OpenAI's clients read it: `{"error": {message, type, param, code}}`."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = dict(headers or {})

    def body(self) -> dict[str, object]:
        """The JSON body, also of the event that ends a broken stream."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": self.message,
                "type": _TYPES.get(self.status, kind),
                "param": self.param,
                "code": self.code,
            }
        }


def error_response(error: ApiError) -> JSONResponse:
    """The error as an HTTP response."""
    return JSONResponse(error.body(), status_code=error.status, headers=error.headers)


def to_api_error(error: BaseException) -> ApiError:
    """The one map from what can go wrong to what a client is told.

    An unknown exception becomes a 500 without its text, which may hold what is not the client's.
    """
    match error:
        case ApiError():
            return error
        case EngineOverloadedError():
            return ApiError(
                429,
                "the server is at capacity; try again later",
                code="overloaded",
                headers={"Retry-After": "1"},
            )
        case EngineUnavailableError():
            return ApiError(
                503,
                "no model replica is ready; try again later",
                code="not_ready",
                headers={"Retry-After": "2"},
            )
        case RequestRefusedError() | UserError():
            return ApiError(400, str(error), code="invalid_request")
        case EngineError():
            return ApiError(500, str(error), code="engine_error")
        case _:
            return ApiError(500, "internal error", code="internal_error")


def validation_error(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """The first of pydantic's errors on a request body, as a 400 that names the field."""
    first = errors[0]
    if first["type"] == "json_invalid":
        return ApiError(400, "the request body is not valid JSON", code="invalid_json")
    path = [str(part) for part in first["loc"] if part != "body" and not _union_tag(part)]
    param = ".".join(path) or None
    if first["type"] == "extra_forbidden":
        return ApiError(
            400, f"unsupported field: {param!r}", code="unsupported_parameter", param=param
        )
    message = str(first["msg"]).removeprefix("Value error, ")
    # A rule over several fields names its own, as "field: text".
    if first["type"] == "value_error" and param is None and ": " in message:
        param, _, message = message.partition(": ")
    return ApiError(400, f"{param or 'request body'}: {message}", code="invalid_value", param=param)


def _union_tag(part: object) -> bool:
    # pydantic puts the branch of a union that it tried into the path: "str", "list[TextPart]".
    return isinstance(part, str) and (part in ("str", "float", "int") or "[" in part)


# ----------------------------------------------------------------------------------- requests


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class TextPart(_Strict):
    """One part of a message's content; only text is supported."""

    type: Literal["text"]
    text: str


class Message(_Strict):
    """One message. `refusal` is there because clients send answers back as they came."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1)]
    refusal: None = None

    def turn(self) -> Turn:
        """The message as the template knows it: parts are joined, a developer is the system."""
        text = (
            self.content
            if isinstance(self.content, str)
            else "".join(part.text for part in self.content)
        )
        return Turn(role="system" if self.role == "developer" else self.role, text=text)


class StreamOptions(_Strict):
    """What a stream carries besides the answer."""

    include_usage: bool | None = None


class ChatRequest(_Strict):
    """The body of POST /v1/chat/completions. null stands for a field that is not given."""

    model: str
    messages: list[Message] = Field(min_length=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1, description="0 and -1 choose among all tokens")
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = None
    user: str | None = None

    @model_validator(mode="after")
    def _fields_agree(self) -> ChatRequest:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: only with stream=true")
        if not all(1 <= len(stop) <= 256 for stop in self.stops) or len(self.stops) > 4:
            raise ValueError("stop: up to 4 strings of 1 to 256 characters")
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise ValueError("max_tokens: differs from max_completion_tokens; give one of them")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk that holds the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def sampling(
        self, *, prompt_tokens: int, context_length: int, vocabulary: int, stop_ids: tuple[int, ...]
    ) -> Sampling:
        """How the engine is to answer a prompt of that many tokens.

        Without a limit the answer may fill the context.

        Raises:
            ApiError: prompt and answer do not fit the context.
        """
        limit = self.max_completion_tokens or self.max_tokens
        room = context_length - prompt_tokens
        if room < (limit or 1):
            asked = f" and {limit} are asked for the answer" if limit else ""
            raise ApiError(
                400,
                f"this model's context is {context_length} tokens, but the messages take "
                f"{prompt_tokens}{asked}",
                code="context_length_exceeded",
                param="messages" if room < 1 else "max_tokens",
            )
        top_k = max(self.top_k or 0, 0)
        return Sampling(
            max_tokens=limit or room,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            # The k most likely of all tokens are all tokens; engines die on more than there are.
            top_k=0 if top_k >= vocabulary else top_k,
            seed=self.seed,
            stop_ids=stop_ids,
        )


# ---------------------------------------------------------------------------------- responses


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


class AssistantMessage(BaseModel):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(BaseModel):
    """The one choice of a completion."""

    index: Literal[0] = 0
    message: AssistantMessage
    logprobs: None = None
    finish_reason: FinishReason


class ChatCompletion(BaseModel):
    """The response to a request without streaming."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


def chunk(
    id: str,
    created: int,
    model: str,
    *,
    delta: Mapping[str, str] | None = None,
    finish_reason: FinishReason | None = None,
    usage: Usage | None = None,
) -> dict[str, object]:
    """One event of a stream: a delta, the finish reason (an empty delta), or the usage."""
    body: dict[str, object] = {
        "id": id,
        "object": "chat.completion.chunk",
        "created": created,
        "model": model,
        "choices": [],
    }
    if usage is not None:
        return body | {"usage": usage.model_dump()}
    choice = {"index": 0, "delta": dict(delta or {}), "logprobs": None}
    return body | {"choices": [choice | {"finish_reason": finish_reason}]}


class Model(BaseModel):
    """One entry of /v1/models. `created` is in seconds since the epoch."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "ochat_ray"
    context_length: int


class ModelList(BaseModel):
    """The response of /v1/models."""

    object: Literal["list"] = "list"
    data: list[Model]
