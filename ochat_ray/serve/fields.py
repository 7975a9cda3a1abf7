"""Types of request fields that are more than a number.

Source: OpenAI's API reference for chat/completions.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ochat_ray.schema import Turn


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
    return value


Text = Annotated[str, AfterValidator(_utf8)]


class Strict(BaseModel):
    """Base model that converts no value and ignores no field."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=()
    )


class TextPart(Strict):
    """Part of a message's content; only text is supported."""

    type: Literal["text"]
    text: Text


class Message(Strict):
    """Chat message. Fields that must be null exist because clients send answers back."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1)]
    refusal: None = None
    annotations: None = None
    audio: None = None
    function_call: None = None
    tool_calls: None = None

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

    include_usage: bool | None = None


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
