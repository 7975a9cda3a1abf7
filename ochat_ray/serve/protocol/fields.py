"""Types of request fields that are more than a number.

Source: OpenAI's API reference for chat/completions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from ochat_ray.serve.engines.schema_limits import check_counts
from ochat_ray.serve.protocol.neutral import (
    MESSAGE,
    PART,
    STREAM_OPTIONS,
    TOOL_CALL,
    Neutral,
    without_neutral,
)
from ochat_ray.serve.protocol.tools import MOST_TOOLS

MOST_FIELDS = 128
"""Fields that an object of a request may have, and that are worth an error each."""


def _utf8(text: str) -> str:
    # JSON can encode an unpaired surrogate, which is not a character and has no UTF-8.
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("has an unpaired surrogate, which is not a character") from None
    return text


def writable(value: dict[str, Any]) -> dict[str, Any]:
    """Check a JSON Schema: it can be written as JSON again, and its counts are not too large."""
    try:
        orjson.dumps(value)
    except TypeError as error:
        raise ValueError(f"cannot be written as JSON again: {error}") from None
    check_counts(value)
    return value


Text = Annotated[str, AfterValidator(_utf8)]


class Strict(BaseModel):
    """Base model that converts no value and ignores no field."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=()
    )
    NEUTRAL: ClassVar[Neutral] = {}

    @model_validator(mode="before")
    @classmethod
    def _remove_neutral(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        if len(data) > MOST_FIELDS:
            raise ValueError(f"has {len(data)} fields, of at most {MOST_FIELDS}")
        known = frozenset(field.alias or name for name, field in cls.model_fields.items())
        return without_neutral(data, known, cls.NEUTRAL)


MOST_MESSAGES = 8192
"""Messages of any request; a server has a limit of its own below it (`max_messages`)."""


def few_messages(value: Any) -> Any:
    """Reject too many messages before each of them is validated, which takes a second."""
    if isinstance(value, list) and len(value) > MOST_MESSAGES:
        raise ValueError(f"has {len(value)} messages, of at most {MOST_MESSAGES}")
    return value


class TextPart(Strict):
    """Part of a message's content; only text is supported."""

    NEUTRAL = PART

    type: Literal["text"]
    text: Text


class CalledFunction(Strict):
    """Function of a call; `arguments` is JSON as the model wrote it, valid or not."""

    name: Text
    arguments: Text


class ToolCall(Strict):
    """Call in an assistant's message."""

    NEUTRAL = TOOL_CALL

    id: Text
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(Strict):
    """Chat message. `name` has a place only in a model's own chat template, for results."""

    NEUTRAL = MESSAGE

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | Annotated[list[TextPart], Field(min_length=1, fail_fast=True)] | None = None
    name: Text | None = None
    tool_calls: (
        Annotated[list[ToolCall], Field(min_length=1, max_length=MOST_TOOLS, fail_fast=True)] | None
    ) = None
    tool_call_id: Text | None = None
    reasoning_content: Text | None = None

    @model_validator(mode="after")
    def _fields_fit_the_role(self) -> Message:
        if self.tool_calls is not None and self.role != "assistant":
            raise ValueError("tool_calls: only in messages of the assistant")
        if (self.tool_call_id is None) == (self.role == "tool"):
            raise ValueError("tool_call_id: in messages of the role tool, and only there")
        if self.reasoning_content is not None and self.role != "assistant":
            raise ValueError("reasoning_content: only in messages of the assistant")
        if self.content is None and self.tool_calls is None:
            raise ValueError("content: is required, except beside tool_calls")
        return self

    @property
    def text(self) -> str:
        """Text of the content: parts are joined without a separator."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class StreamOptions(Strict):
    """Options of a streamed response."""

    NEUTRAL = STREAM_OPTIONS

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = Field(None, description="the usage so far in each chunk")


class TextFormat(Strict):
    """Response format for arbitrary text."""

    type: Literal["text"]


class JsonObjectFormat(Strict):
    """Response format for a JSON object."""

    type: Literal["json_object"]


class JsonSchema(Strict):
    """JSON Schema with a name. It is always enforced, whatever `strict` says."""

    name: Text
    description: Text | None = None
    schema_: Annotated[dict[str, Any], AfterValidator(writable)] = Field(alias="schema")
    strict: bool | None = None


class JsonSchemaFormat(Strict):
    """Response format for JSON that matches a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema
