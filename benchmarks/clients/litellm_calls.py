"""Usual calls of LiteLLM."""

from __future__ import annotations

from typing import Any

from client_common import (
    LONG,
    MODEL,
    QUESTION,
    TOOL,
    Calls,
    Rejected,
    Server,
    raises,
    valid,
    weather_class,
)


def litellm_calls(server: Server) -> Calls:
    import litellm

    litellm.suppress_debug_info = True
    weather = weather_class()
    where: dict[str, Any] = {"api_base": server.url, "api_key": "none", "num_retries": 0}
    ask: dict[str, Any] = {"model": f"openai/{MODEL}", "messages": QUESTION, "max_tokens": 16}
    ask |= where

    def complete(**fields: Any) -> Any:
        return litellm.completion(**ask | fields).choices[0].message

    def stream() -> None:
        parts = list(litellm.completion(**ask, stream=True, stream_options={"include_usage": True}))
        assert litellm.stream_chunk_builder(parts).usage.completion_tokens <= 16

    def history() -> None:
        first = complete()
        for message in (first, first.model_dump()):
            complete(messages=[*QUESTION, message, *QUESTION])

    def cached() -> None:
        part = {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}
        complete(messages=[{"role": "system", "content": [part]}, *QUESTION])

    def tools() -> None:
        first = complete(tools=[TOOL], tool_choice="required", max_tokens=400)
        for call in first.tool_calls:
            valid(call.function.arguments)
        results = [
            {"role": "tool", "tool_call_id": call.id, "name": "weather", "content": "Sunny."}
            for call in first.tool_calls
        ]
        complete(messages=[*QUESTION, first, *results], tools=[TOOL])

    def tools_stream() -> None:
        fields = {"tools": [TOOL], "tool_choice": "required", "max_tokens": 400}
        parts = list(litellm.completion(**ask | fields, stream=True))
        for call in litellm.stream_chunk_builder(parts).choices[0].message.tool_calls:
            valid(call.function.arguments)

    def responses(**fields: Any) -> Any:
        one = {"model": f"openai/{MODEL}", "input": "hi", "max_output_tokens": 16}
        return litellm.responses(**one | where | fields)

    def embeddings() -> None:
        litellm.embedding(model=f"openai/{MODEL}", input=["a"], **where)

    async def asynchronous() -> None:
        parts = await litellm.acompletion(**ask, stream=True)
        assert [part async for part in parts]

    def text() -> None:
        fields = {"model": f"text-completion-openai/{MODEL}", "prompt": "The sea", "max_tokens": 8}
        litellm.text_completion(**fields, **where)

    long = {"messages": [{"role": "user", "content": LONG}]}
    return {
        "completion": complete,
        "completion as hosted_vllm": lambda: complete(model=f"hosted_vllm/{MODEL}"),
        "stream with usage": stream,
        "acompletion": asynchronous,
        "history with the answers as they were received": history,
        "cache_control": cached,
        "metadata": lambda: complete(metadata={"a": "b"}),
        "response_format": lambda: valid(complete(response_format=weather, max_tokens=200).content),
        "tools and results": tools,
        "tools: stream": tools_stream,
        "text_completion": text,
        "responses": responses,
        "responses: stream": lambda: list(responses(stream=True)),
        "ContextWindowExceededError": lambda: raises(
            litellm.ContextWindowExceededError, lambda: complete(**long)
        ),
        **({"embedding": embeddings} if server.has("/v1/embeddings") else {}),
        "reasoning_effort": Rejected(
            "reasoning_effort", lambda: complete(reasoning_effort="low", drop_params=True)
        ),
    }
