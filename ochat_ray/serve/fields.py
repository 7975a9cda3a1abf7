"""What the fields of a request may hold, where that is more than a number.

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
    # JSON can spell half a surrogate pair, which is no character and has no UTF-8.
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("has half of a surrogate pair, which is no character") from None
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
    """Nothing is converted, and no field is ignored."""

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
    """One part of a message's content; only text is supported."""

    NEUTRAL = PART

    type: Literal["text"]
    text: Text


class Message(Strict):
    """One message. `name` is accepted, but no template of this server can write it."""

    NEUTRAL = MESSAGE

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1, fail_fast=True)]
    name: Text | None = None

    def turn(self) -> Turn:
        """The message as the template knows it: parts are joined, a developer is the system."""
        text = (
            self.content
            if isinstance(self.content, str)
            else "".join(part.text for part in self.content)
        )
        return Turn(role="system" if self.role == "developer" else self.role, text=text)


class StreamOptions(Strict):
    """What a stream carries besides the answer."""

    NEUTRAL = STREAM_OPTIONS

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = Field(None, description="the usage so far in each chunk")


class TextFormat(Strict):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(Strict):
    """A JSON object."""

    type: Literal["json_object"]


class JsonSchema(Strict):
    """A JSON Schema with a name. It is always kept to, whatever `strict` says."""

    name: Text
    description: Text | None = None
    schema_: Annotated[dict[str, Any], AfterValidator(_json)] = Field(alias="schema")
    strict: bool | None = None


class JsonSchemaFormat(Strict):
    """JSON of a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema
