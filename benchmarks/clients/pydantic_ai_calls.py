"""Usual calls of Pydantic AI."""

from __future__ import annotations

from typing import Any, Literal

from client_common import LONG, MODEL, Calls, Server, raises, valid, weather_class


def pydantic_ai_calls(server: Server) -> Calls:
    from pydantic import create_model
    from pydantic_ai import Agent, NativeOutput, PromptedOutput
    from pydantic_ai.exceptions import ModelHTTPError
    from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
    from pydantic_ai.providers.openai import OpenAIProvider

    forecast = weather_class()
    provider = OpenAIProvider(base_url=server.url, api_key="none")
    kinds: dict[str, Any] = {"chat": OpenAIChatModel, "responses": OpenAIResponsesModel}

    def agent(kind: str, **options: Any) -> Any:
        settings: Any = {"max_tokens": 400, "seed": 1} if kind == "chat" else {"max_tokens": 400}
        return Agent(kinds[kind](MODEL, provider=provider), model_settings=settings, **options)

    def weather(city: Literal["Bonn", "Paris"], days: int) -> str:
        """Return the weather."""
        return f"Sunny in {city} for {days} days."

    def calls(kind: str) -> Calls:
        def history() -> None:
            one = agent(kind, instructions="Be brief.", system_prompt="You are kind.")
            one.run_sync("more", message_history=one.run_sync("hi").all_messages())

        def typed(output: Any = forecast, **options: Any) -> None:
            one = agent(kind, output_type=output, retries=5, **options)
            first = one.run_sync("hi")
            valid(first.output)
            valid(one.run_sync("more", message_history=first.all_messages()).output)

        async def stream() -> None:
            async with agent(kind).run_stream("hi") as answer:
                await answer.get_output()

        async def typed_stream() -> None:
            async with agent(kind, output_type=forecast, retries=5).run_stream("hi") as answer:
                valid(await answer.get_output())

        def overflow() -> None:
            raises(ModelHTTPError, lambda: agent(kind).run_sync(LONG), "maximum context length")

        return {
            f"{kind}: text": lambda: agent(kind).run_sync("hi"),
            f"{kind}: instructions and history": history,
            f"{kind}: stream": stream,
            f"{kind}: tools": lambda: agent(kind, tools=[weather]).run_sync("hi"),
            f"{kind}: typed output": typed,
            f"{kind}: typed output, stream": typed_stream,
            f"{kind}: typed output with tools": lambda: typed(tools=[weather]),
            f"{kind}: NativeOutput": lambda: typed(NativeOutput(forecast)),
            f"{kind}: NativeOutput with tools": lambda: typed(
                NativeOutput(forecast), tools=[weather]
            ),
            f"{kind}: ModelHTTPError": overflow,
        }

    prompted = agent(
        "chat", output_type=PromptedOutput(create_model("anything", city=(Any, None))), retries=5
    )
    return {
        **calls("chat"),
        "chat: PromptedOutput (JSON mode)": lambda: prompted.run_sync("hi"),
        **calls("responses"),
    }
