"""Requests to a lenient server, which lists unknown fields instead of rejecting them."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from ochat_ray.serve.protocol.fields import Message, few_messages
from ochat_ray.serve.protocol.requests import ChatRequest, CompletionRequest, SamplingRequest


def ignored_fields(request: SamplingRequest) -> list[str]:
    """Return the names of the fields that were sent and have no effect, sorted."""
    names = set(request.model_extra or {})
    for message in getattr(request, "messages", ()):
        extra = set(message.model_extra or {}) | ({"name"} if message.name is not None else set())
        names |= {f"messages.{name}" for name in extra}
    return sorted(names)


class _LenientMessage(Message):
    model_config = ConfigDict(extra="allow")


class LenientChatRequest(ChatRequest):
    """Chat request that keeps unknown fields in `model_extra` instead of rejecting them."""

    model_config = ConfigDict(extra="allow")

    messages: Annotated[list[_LenientMessage], BeforeValidator(few_messages)] = Field(  # type: ignore[assignment]
        min_length=1, fail_fast=True
    )

    @model_validator(mode="after")
    def _asks_for_no_tool(self) -> LenientChatRequest:
        if "function_call" in (self.model_extra or {}):
            raise ValueError("function_call: is not supported; use tools and tool_choice")
        return self


class LenientCompletionRequest(CompletionRequest):
    """Text completion request that keeps unknown fields in `model_extra`."""

    model_config = ConfigDict(extra="allow")
