"""Body of POST /v1/responses, and its translation to a chat request.

Responses are not stored: a conversation is sent whole each time.

Source: OpenAI's API reference for responses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from ochat_ray.serve.protocol.errors import ApiError, validation_error
from ochat_ray.serve.protocol.fields import JsonObjectFormat, JsonSchema, Strict, Text, TextFormat
from ochat_ray.serve.protocol.neutral import (
    RESPONSES,
    RESPONSES_ITEM,
    RESPONSES_PART,
    RESPONSES_TEXT,
    TOOL,
)
from ochat_ray.serve.protocol.requests import ChatRequest
from ochat_ray.serve.protocol.tool_fields import FunctionDefinition, NamedFunction
from ochat_ray.serve.protocol.tools import MOST_TOOLS

MOST_METADATA = 16
"""Maximum entries of `metadata`; OpenAI's limit."""

SAMPLING = (
    "seed", "stop", "ignore_eos", "top_k", "min_p",
    "presence_penalty", "frequency_penalty", "repetition_penalty",
)  # fmt: skip
"""Fields that are those of chat requests."""


class InputText(Strict):
    """Part of a message; `output_text` is that of an answer which is sent back."""

    NEUTRAL = RESPONSES_PART

    type: Literal["input_text", "output_text"]
    text: Text


_Parts = Annotated[list[InputText], Field(min_length=1, fail_fast=True)]


class InputMessage(Strict):
    """Message of the conversation."""

    NEUTRAL = RESPONSES_ITEM

    type: Literal["message"]
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | _Parts


class InputCall(Strict):
    """Call of a function in an earlier answer."""

    NEUTRAL = RESPONSES_ITEM

    type: Literal["function_call"]
    call_id: Text
    name: Text
    arguments: Text


class InputResult(Strict):
    """Result of a call."""

    NEUTRAL = RESPONSES_ITEM

    type: Literal["function_call_output"]
    call_id: Text
    output: Text | _Parts


def _is_message(item: Any) -> Any:
    if not isinstance(item, Mapping):
        return item
    if item.get("type") == "item_reference":
        raise ValueError("item_reference: responses are not stored; send the item itself")
    return item if "type" in item else {"type": "message", **item}


_Item = Annotated[
    Annotated[InputMessage | InputCall | InputResult, Field(discriminator="type")],
    BeforeValidator(_is_message),
]


class _Function(Strict):
    type: Literal["function"]


class FunctionTool(FunctionDefinition, _Function):
    """Entry of `tools`."""

    NEUTRAL = TOOL


class FunctionChoice(NamedFunction, _Function):
    """`tool_choice` that requires calls of one function."""


class AllowedChoice(Strict):
    """`tool_choice` that restricts the calls to some of the tools."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[
        list[FunctionChoice], Field(min_length=1, max_length=MOST_TOOLS, fail_fast=True)
    ]


class JsonSchemaText(JsonSchema):
    """Format for JSON that matches a schema."""

    type: Literal["json_schema"]


class TextOptions(Strict):
    """Options of the answer's text."""

    NEUTRAL = RESPONSES_TEXT

    format: (
        Annotated[TextFormat | JsonObjectFormat | JsonSchemaText, Field(discriminator="type")]
        | None
    ) = None


def _few(metadata: dict[str, str]) -> dict[str, str]:
    if any(len(key) > 64 or len(value) > 512 for key, value in metadata.items()):
        raise ValueError("has keys of up to 64 and values of up to 512 characters")
    return metadata


class ResponsesRequest(Strict):
    """Body of POST /v1/responses."""

    NEUTRAL = RESPONSES

    model: Text
    input: Text | Annotated[list[_Item], Field(min_length=1, fail_fast=True)]
    instructions: Text | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    stream: bool | None = None
    text: TextOptions | None = None
    tools: (
        Annotated[list[FunctionTool], Field(min_length=1, max_length=MOST_TOOLS, fail_fast=True)]
        | None
    ) = None
    tool_choice: (
        Literal["none", "auto", "required"]
        | Annotated[FunctionChoice | AllowedChoice, Field(discriminator="type")]
        | None
    ) = None
    parallel_tool_calls: bool | None = None
    metadata: (
        Annotated[dict[Text, Text], Field(max_length=MOST_METADATA), AfterValidator(_few)] | None
    ) = None
    store: Literal[False] | None = Field(None, description="responses are not stored")
    user: Text | None = None
    # vLLM's; `ChatRequest` checks their values.
    seed: int | None = None
    stop: Text | Annotated[list[Text], Field(fail_fast=True)] | None = None
    ignore_eos: bool | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None

    def chat(self) -> ChatRequest:
        """Return the chat request that asks for the same answer.

        Raises:
            ApiError: It is invalid as a whole, such as a result that belongs to no call.
        """
        form = self.text.format if self.text else None
        given: dict[str, Any] = {
            "model": self.model,
            "messages": _messages(self.instructions, self.input),
            "max_completion_tokens": self.max_output_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "stream": self.stream,
            "tools": [_nested(tool) for tool in self.tools or ()] or None,
            "tool_choice": _choice(self.tool_choice),
            "parallel_tool_calls": self.parallel_tool_calls,
            "response_format": _nested(form, "json_schema")
            if isinstance(form, JsonSchemaText)
            else form and form.model_dump(),
            "user": self.user,
            **{name: getattr(self, name) for name in SAMPLING},
        }
        try:
            return ChatRequest.model_validate({k: v for k, v in given.items() if v is not None})
        except ValidationError as error:
            raise renamed(validation_error(error.errors())) from error


def _choice(choice: str | FunctionChoice | AllowedChoice | None) -> Any:
    """Return the `tool_choice` of the chat request."""
    if isinstance(choice, AllowedChoice):
        allowed = {"mode": choice.mode, "tools": [_nested(tool) for tool in choice.tools]}
        return {"type": choice.type, "allowed_tools": allowed}
    return _nested(choice) if isinstance(choice, FunctionChoice) else choice


def _nested(
    flat: FunctionTool | FunctionChoice | JsonSchemaText, name: str = "function"
) -> dict[str, Any]:
    """Return an object whose fields chat requests have within another object."""
    fields = flat.model_dump(by_alias=True, exclude_none=True)
    return {"type": fields.pop("type"), name: fields}


def _messages(
    instructions: str | None, given: str | Sequence[InputMessage | InputCall | InputResult]
) -> list[dict[str, Any]]:
    """Return the messages of a chat request; calls in a row are one message of the assistant."""
    messages: list[dict[str, Any]] = []
    if instructions:
        messages.append({"role": "system", "content": instructions})
    if isinstance(given, str):
        return [*messages, {"role": "user", "content": given}]
    for item in given:
        if isinstance(item, InputMessage):
            messages.append({"role": item.role, "content": _joined(item.content)})
        elif isinstance(item, InputResult):
            result = {"tool_call_id": item.call_id, "content": _joined(item.output)}
            messages.append({"role": "tool", **result})
        else:
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": None})
            function = {"name": item.name, "arguments": item.arguments}
            call = {"id": item.call_id, "type": "function", "function": function}
            messages[-1].setdefault("tool_calls", []).append(call)
    return messages


def _joined(content: str | list[InputText]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


_NAMES = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
}


def renamed(error: ApiError) -> ApiError:
    """Return an error about the chat request with the name that its field has here."""
    field = (error.param or "").partition(".")[0]
    if field in _NAMES:
        error.message = error.message.replace(field, _NAMES[field], 1)
        error.param = _NAMES[field]
    elif field == "response_format":
        error.message = error.message.replace(field, "text.format", 1)
        error.param = "text.format"
    return error
