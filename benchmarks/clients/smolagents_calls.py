"""Usual calls of smolagents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from client_common import MODEL, Calls, Server


def smolagents_calls(server: Server) -> Calls:
    from smolagents import CodeAgent, OpenAIModel, ToolCallingAgent, tool

    def model(**options: Any) -> Any:
        return OpenAIModel(
            model_id=MODEL, api_base=server.url, api_key="none", max_tokens=400, **options
        )

    message = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]

    @tool
    def weather(city: str) -> str:
        """Return the weather.

        Args:
            city: Name of the city.
        """
        return f"Sunny in {city}."

    def agent(kind: Any, **options: Any) -> Callable[[], Any]:
        return lambda: kind(
            tools=[weather], model=model(), max_steps=2, verbosity_level=0, **options
        ).run("hi")

    def stopped() -> None:
        model().generate(message, stop_sequences=["Observation:", "Calling tools:"])

    def tools() -> None:
        found = model().generate(message, tools_to_call_from=[weather])
        assert found.tool_calls

    def streamed() -> None:
        agent(ToolCallingAgent, stream_outputs=True)()

    return {
        "OpenAIModel": lambda: model()(message),
        "generate with stop_sequences": stopped,
        "generate_stream": lambda: list(model().generate_stream(message)),
        "generate with tools": tools,
        "CodeAgent": agent(CodeAgent),
        "CodeAgent, structured": agent(CodeAgent, use_structured_outputs_internally=True),
        "CodeAgent, stream": agent(CodeAgent, stream_outputs=True),
        "ToolCallingAgent": agent(ToolCallingAgent),
        "ToolCallingAgent, stream": streamed,
    }
