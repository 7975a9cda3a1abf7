"""Request fields for calling tools.

Source: OpenAI's API reference for chat/completions.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    model_validator,
)

from ochat_ray.serve.protocol.fields import Strict, Text, writable
from ochat_ray.serve.protocol.neutral import TOOL
from ochat_ray.serve.protocol.tools import MOST_TOOLS, NO_ARGUMENTS, CallRules, Tool


class AsSent(Strict):
    """Object that a chat template writes, so the order of its fields decides the ids."""

    _order: tuple[str, ...] = PrivateAttr(())

    @model_validator(mode="wrap")
    @classmethod
    def _keep_order(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        found = handler(data)
        if isinstance(data, Mapping):
            found._order = tuple(name for name in data if name in found.model_fields_set)
        return found

    def as_sent(self) -> dict[str, Any]:
        """Return the fields that the client sent, in its order."""
        values = ((name, getattr(self, name)) for name in self._order)
        return {k: v.as_sent() if isinstance(v, AsSent) else v for k, v in values}


class FunctionDefinition(AsSent):
    """Function that the model may call. Its schema is always enforced, whatever `strict` says."""

    name: Annotated[Text, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: Text | None = None
    parameters: Annotated[dict[str, Any], AfterValidator(writable)] | None = None
    strict: bool | None = None

    @model_validator(mode="after")
    def _arguments_are_an_object(self) -> FunctionDefinition:
        if (self.parameters or {}).get("type", "object") != "object":
            raise ValueError('parameters: the schema of the arguments has the type "object"')
        return self


class ToolDefinition(AsSent):
    """Entry of `tools`."""

    NEUTRAL = TOOL

    type: Literal["function"]
    function: FunctionDefinition

    def tool(self) -> Tool:
        """Return the tool."""
        given = self.function.parameters
        return Tool(
            name=self.function.name,
            description=self.function.description or "",
            parameters=NO_ARGUMENTS if given is None else {"type": "object", **given},
        )


class NamedFunction(Strict):
    """Name of a function."""

    name: Text


class NamedTool(Strict):
    """`tool_choice` that requires one call, of this function."""

    type: Literal["function"]
    function: NamedFunction


class AllowedFunctions(Strict):
    """Functions that may be called, and whether one of them must be."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1, max_length=MOST_TOOLS, fail_fast=True)]


class AllowedTools(Strict):
    """`tool_choice` that restricts the calls to some of the tools, all of which are described."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedFunctions


Tools = Annotated[list[ToolDefinition], Field(min_length=1, max_length=MOST_TOOLS, fail_fast=True)]


class ToolFields(Strict):
    """Tools, and which of them an answer calls."""

    tools: Tools | None = None
    tool_choice: (
        Literal["none", "auto", "required"]
        | Annotated[NamedTool | AllowedTools, Field(discriminator="type")]
        | None
    ) = None
    parallel_tool_calls: bool | None = Field(None, description="false: at most one call")

    @cached_property
    def calls(self) -> CallRules | None:
        """Calls that the answer may have; None without tools."""
        tools, choice = [tool.tool() for tool in self.tools or ()], self.tool_choice
        names = {tool.name for tool in tools}
        if len(names) < len(tools):
            raise ValueError("tools: two functions have the same name")
        chosen: list[NamedTool] = []
        if isinstance(choice, NamedTool):
            chosen = [choice]
        elif isinstance(choice, AllowedTools):
            chosen, choice = choice.allowed_tools.tools, choice.allowed_tools.mode
        if unknown := {tool.function.name for tool in chosen} - names:
            raise ValueError(f"tool_choice: no tool has the name {min(unknown)!r}")
        if chosen:
            tools = [t for t in tools if any(t.name == named.function.name for named in chosen)]
        elif choice == "required" and not tools:
            raise ValueError("tool_choice: requires a call, and there are no tools")
        if not tools:
            return None
        return CallRules(
            tools=tuple(tools),
            required=choice not in (None, "auto"),
            # "Call exactly one specific function" (OpenAI's guide): clients read one call.
            parallel=self.parallel_tool_calls is not False and not isinstance(choice, NamedTool),
        )
