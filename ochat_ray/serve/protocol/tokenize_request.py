"""Requests to convert text or messages to token ids, and back."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from ochat_ray.schema import Turn
from ochat_ray.serve.protocol.conversation import turns_of
from ochat_ray.serve.protocol.fields import Message, Strict, Text, few_messages
from ochat_ray.serve.protocol.neutral import TOKENIZE
from ochat_ray.serve.protocol.tool_fields import Tools


class DetokenizeRequest(Strict):
    """Body of POST /detokenize."""

    model: Text | None = None
    tokens: Annotated[list[Annotated[int, Field(ge=0)]], Field(fail_fast=True)]


class TokenizeRequest(Strict):
    """Body of POST /tokenize: either a prompt or messages."""

    NEUTRAL = TOKENIZE

    model: Text | None = None
    prompt: Text | None = None
    messages: Annotated[
        Annotated[list[Message], Field(min_length=1, fail_fast=True)] | None,
        BeforeValidator(few_messages),
    ] = None
    tools: Tools | None = None
    condition: Text | None = Field(None, max_length=64)
    add_generation_prompt: bool = True
    chat_template_kwargs: dict[str, Any] | None = None
    add_special_tokens: bool | None = Field(None, description="false: no BOS before the prompt")

    @model_validator(mode="after")
    def _one_of_two(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("prompt: give either prompt or messages")
        if self.tools and self.messages is None:
            raise ValueError("tools: only with messages")
        if self.add_special_tokens and self.messages is not None:
            raise ValueError("add_special_tokens: not with messages; the template has its own")
        _ = self.turns  # raises if results do not fit the calls
        return self

    @cached_property
    def turns(self) -> list[Turn]:
        """Turns that the model reads."""
        tools = [tool.tool() for tool in self.tools or ()]
        return turns_of(self.messages, tools) if self.messages else []
