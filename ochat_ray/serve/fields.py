"""Types of request fields that are more than a number.

Source: OpenAI's API reference for chat/completions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from ochat_ray.schema import Turn
from ochat_ray.serve.engines.schema_limits import check_counts
from ochat_ray.serve.neutral import MESSAGE, PART, STREAM_OPTIONS, Neutral, without_neutral

MOST_FIELDS = 128
"""Fields that an object of a request may have, and that are worth an error each."""


def _utf8(text: str) -> str:
    # JSON can encode an unpaired surrogate, which is not a character and has no UTF-8.
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("has an unpaired surrogate, which is not a character") from None
    return text


def _json(value: dict[str, Any]) -> dict[str, Any]:
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


class TextPart(Strict):
    """Part of a message's content; only text is supported."""

    NEUTRAL = PART

    type: Literal["text"]
    text: Text


class Message(Strict):
    """Chat message. `name` is accepted, but has no place in the templates."""

    NEUTRAL = MESSAGE

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1, fail_fast=True)]
    name: Text | None = None

    def turn(self) -> Turn:
        """Return the message as a turn: parts are joined, and "developer" means "system"."""
        text = (
            self.content
            if isinstance(self.content, str)
            else "".join(part.text for part in self.content)
        )
        return Turn(role="system" if self.role == "developer" else self.role, text=text)


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
    schema_: Annotated[dict[str, Any], AfterValidator(_json)] = Field(alias="schema")
    strict: bool | None = None


class JsonSchemaFormat(Strict):
    """Response format for JSON that matches a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema
