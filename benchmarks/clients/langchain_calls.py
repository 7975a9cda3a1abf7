"""Usual calls of LangChain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from client_common import (
    LONG,
    MODEL,
    QUESTION,
    Calls,
    Rejected,
    Server,
    raises,
    valid,
    weather_class,
)


def langchain_calls(server: Server) -> Calls:
    from langchain.agents import create_agent
    from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
    from langchain_core.exceptions import ContextOverflowError
    from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings

    forecast = weather_class()
    where: dict[str, Any] = {"base_url": server.url, "api_key": "none", "max_retries": 0}
    where |= {"model": MODEL}
    model = ChatOpenAI(max_tokens=16, **where)
    long = ChatOpenAI(max_tokens=400, **where)
    responding = ChatOpenAI(max_tokens=400, use_responses_api=True, **where)

    @tool
    def weather(city: Literal["Bonn", "Paris"], days: int) -> str:
        """Return the weather."""
        return f"Sunny in {city} for {days} days."

    def history(model: Any = model) -> None:
        first = model.invoke([SystemMessage("Be brief."), HumanMessage("hi", name="bob")])
        named = AIMessage("yes", name="agent")
        model.invoke([HumanMessage("hi"), first, HumanMessage("go"), named, HumanMessage("more")])

    def usage() -> None:
        parts = list(model.stream("hi", stream_usage=True))
        assert sum(part.usage_metadata["output_tokens"] for part in parts if part.usage_metadata)

    def tools(model: Any = long) -> None:
        first = model.bind_tools([weather], tool_choice="any").invoke("hi")
        for call in first.tool_calls:
            valid(call["args"])
        results = [ToolMessage("Sunny.", tool_call_id=call["id"]) for call in first.tool_calls]
        model.bind_tools([weather]).invoke([HumanMessage("hi"), first, *results])

    def tools_stream(model: Any = long) -> None:
        first, *parts = model.bind_tools([weather], tool_choice="any").stream("hi")
        for part in parts:
            first += part
        for call in first.tool_calls:
            valid(call["args"])

    def structured(method: str, model: Any = long) -> Callable[[], None]:
        return lambda: valid(model.with_structured_output(forecast, method=method).invoke("hi"))

    def agent(strategy: Any = None, model: Any = long) -> Callable[[], None]:
        def run() -> None:
            made = create_agent(model, [weather], response_format=strategy)
            found = made.invoke({"messages": QUESTION}, {"recursion_limit": 50})
            if strategy is not None:
                valid(found["structured_response"])

        return run

    async def asynchronous() -> None:
        assert [part async for part in model.astream("hi")]

    def logprobs() -> None:
        found = model.bind(logprobs=True, top_logprobs=2).invoke("hi")
        assert found.response_metadata["logprobs"]["content"]

    def embeddings() -> None:
        OpenAIEmbeddings(check_embedding_ctx_length=False, **where).embed_documents(["a", "b"])

    def overflow() -> None:
        raises(ContextOverflowError, lambda: model.invoke(LONG))

    return {
        "ChatOpenAI.invoke": lambda: model.invoke("hi"),
        "stream": lambda: list(model.stream("hi")),
        "stream with usage": usage,
        "astream": asynchronous,
        "batch": lambda: model.batch(["a", "b"]),
        "history with system, names and answers": history,
        "with_structured_output: json_schema": structured("json_schema"),
        "with_structured_output: function_calling": structured("function_calling"),
        "JSON mode": lambda: long.bind(response_format={"type": "json_object"}).invoke("as JSON"),
        "bind_tools and results": tools,
        "bind_tools: stream": tools_stream,
        "create_agent": agent(),
        "create_agent, ToolStrategy": agent(ToolStrategy(forecast)),
        "create_agent, ProviderStrategy": agent(ProviderStrategy(forecast)),
        "logprobs": logprobs,
        "n": lambda: model.generate([[HumanMessage("hi")]], n=2),
        "OpenAI (completions)": lambda: OpenAI(max_tokens=8, **where).invoke("The sea"),
        "responses API": lambda: responding.invoke("hi"),
        "responses API: history": lambda: history(responding),
        "responses API: stream": lambda: list(responding.stream("hi")),
        "responses API: tools and results": lambda: tools(responding),
        "responses API: tools, stream": lambda: tools_stream(responding),
        "responses API: structured output": structured("json_schema", responding),
        "ContextOverflowError": overflow,
        **({"OpenAIEmbeddings": embeddings} if server.has("/v1/embeddings") else {}),
        "OpenAI with best_of": Rejected(
            "best_of", lambda: OpenAI(max_tokens=8, n=2, best_of=2, **where).invoke("The sea")
        ),
    }
