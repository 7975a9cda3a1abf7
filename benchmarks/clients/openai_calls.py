"""Usual calls of OpenAI's client."""

from __future__ import annotations

import json
from typing import Any

from client_common import (
    FORMAT,
    FUNCTION,
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


def openai_calls(server: Server) -> Calls:
    import openai

    client: Any = openai.OpenAI(base_url=server.url, api_key="none", max_retries=0)
    weather = weather_class()
    ask: dict[str, Any] = {"model": MODEL, "messages": QUESTION, "max_tokens": 16}
    chat, responses = client.chat.completions, client.responses
    one: dict[str, Any] = {"model": MODEL, "input": "What is the sea?", "max_output_tokens": 16}

    def stream() -> None:
        chunks = list(chat.create(**ask, stream=True, stream_options={"include_usage": True}))
        assert chunks[-1].usage.completion_tokens <= 16
        assert chunks[-2].choices[0].finish_reason in ("stop", "length")

    def history() -> None:
        first = chat.create(**ask).choices[0].message
        for message in (first, first.model_dump(), first.model_dump(exclude_none=True)):
            chat.create(**ask | {"messages": [*QUESTION, message, *QUESTION]})

    def roles() -> None:
        for role in ("system", "developer"):
            chat.create(**ask | {"messages": [{"role": role, "content": "Be brief."}, *QUESTION]})

    def helper() -> None:
        fields = ask | {"max_tokens": 400, "stream_options": {"include_usage": True}}
        with chat.stream(**fields) as events:
            kinds = {event.type for event in events}
            final = events.get_final_completion()
        # The client's event for an answer; an empty one, which the tiny model may write, has none.
        assert "content.done" in kinds or not final.choices[0].message.content
        assert final.usage.total_tokens > 16

    def parse() -> None:
        answer = chat.parse(**ask | {"max_tokens": 200}, response_format=weather)
        valid(answer.choices[0].message.parsed)
        message = answer.choices[0].message
        chat.create(**ask | {"messages": [*QUESTION, message, *QUESTION]})

    def parse_stream() -> None:
        with chat.stream(**ask | {"max_tokens": 200}, response_format=weather) as events:
            valid(events.get_final_completion().choices[0].message.parsed)

    def tools(**fields: Any) -> Any:
        message = chat.create(**ask | {"max_tokens": 400, "tools": [TOOL]} | fields)
        return message.choices[0].message

    def required(**fields: Any) -> Any:
        message = tools(tool_choice="required", **fields)
        for call in message.tool_calls:
            valid(call.function.arguments)
        return message

    def named() -> None:
        choice = {"type": "function", "function": {"name": "weather"}}
        (call,) = tools(tool_choice=choice).tool_calls
        valid(call.function.arguments)

    def one_call() -> None:
        assert len(required(parallel_tool_calls=False).tool_calls) == 1

    def round_trip() -> None:
        message = required()
        results = [
            {"role": "tool", "tool_call_id": call.id, "content": "Sunny."}
            for call in message.tool_calls
        ]
        for sent in (message, message.model_dump()):
            tools(messages=[*QUESTION, sent, *results])

    def tools_stream() -> None:
        fields = {"max_tokens": 400, "tools": [TOOL], "tool_choice": "required"}
        with chat.stream(**ask | fields) as events:
            kinds = [event.type for event in events]
            message = events.get_final_completion().choices[0].message
        assert "tool_calls.function.arguments.delta" in kinds
        for call in message.tool_calls:
            valid(call.function.arguments)

    def tools_or_json() -> None:
        message = tools(response_format=FORMAT)
        valid(message.content or message.tool_calls[0].function.arguments)

    def logprobs() -> None:
        choice = chat.create(**ask, logprobs=True, top_logprobs=3).choices[0]
        assert all(len(entry.top_logprobs) == 3 for entry in choice.logprobs.content)

    def many() -> None:
        answer = chat.create(**ask, n=2, seed=1, stop=["\n"], logit_bias={"40": -100})
        assert [choice.index for choice in answer.choices] == [0, 1]

    def completions() -> None:
        fields = {"model": MODEL, "prompt": "The sea", "max_tokens": 8}
        client.completions.create(**fields)
        assert len(list(client.completions.create(**fields, stream=True))) > 0
        scores = client.completions.create(**fields, echo=True, logprobs=2).choices[0].logprobs
        assert len(scores.tokens) == len(scores.token_logprobs)

    def raw() -> None:
        answer = chat.with_raw_response.create(**ask)
        assert answer.request_id
        assert answer.parse().usage.total_tokens

    def models() -> None:
        (model,) = client.models.list()
        assert client.models.retrieve(model.id).id == MODEL

    async def asynchronous() -> None:
        async with openai.AsyncOpenAI(base_url=server.url, api_key="none") as other:
            parts = await other.chat.completions.create(**ask, stream=True)
            assert [part async for part in parts]

    def errors() -> None:
        long = ask | {"messages": [{"role": "user", "content": LONG}]}
        raises(openai.BadRequestError, lambda: chat.create(**long), "context_length_exceeded")
        raises(openai.NotFoundError, lambda: chat.create(**ask | {"model": "other"}))
        hurried = client.with_options(timeout=0.001)
        raises(openai.APITimeoutError, lambda: hurried.chat.completions.create(**ask))

    def answer_of(**fields: Any) -> Any:
        return responses.create(**one | fields)

    def responses_history() -> None:
        first = answer_of(instructions="Be brief.")
        given = [{"role": "user", "content": "hi"}, *first.output]
        part = {"type": "input_text", "text": "more"}
        answer_of(input=[*given, {"role": "user", "content": [part]}])

    def responses_stream() -> None:
        with responses.stream(**one) as events:
            kinds = [event.type for event in events]
            final = events.get_final_response()
        assert kinds[0] == "response.created"
        assert final.usage.output_tokens <= 16

    def responses_parse() -> None:
        fields = one | {"max_output_tokens": 200}
        valid(responses.parse(**fields, text_format=weather).output_parsed)

    def responses_tools() -> None:
        fields: dict[str, Any] = {"tools": [{"type": "function", **FUNCTION}]}
        fields["max_output_tokens"] = 400
        first = answer_of(**fields, tool_choice="required")
        for call in first.output:
            valid(call.arguments)
        results = [
            {"type": "function_call_output", "call_id": call.call_id, "output": "Sunny."}
            for call in first.output
        ]
        answer_of(**fields, input=[*QUESTION, *first.output, *results])
        with responses.stream(**one | fields, tool_choice="required") as events:
            for call in (event.item for event in events if event.type.endswith("item.done")):
                valid(call.arguments)

    def embeddings() -> None:
        for encoding in ("float", "base64"):
            fields = {"model": MODEL, "encoding_format": encoding}
            found = client.embeddings.create(**fields, input=["a", "b"])
            assert [entry.index for entry in found.data] == [0, 1]
        assert client.embeddings.create(model=MODEL, input="a").data[0].embedding

    image = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    pictured = ask | {"messages": [{"role": "user", "content": [image]}]}
    return {
        "chat": lambda: chat.create(**ask),
        "system and developer messages": roles,
        "history with the answers as they were received": history,
        "stream with usage": stream,
        "stream()": helper,
        "JSON mode": lambda: json.loads(
            chat.create(**ask | {"max_tokens": 400}, response_format={"type": "json_object"})
            .choices[0]
            .message.content
        ),
        "parse()": parse,
        "stream() and parse": parse_stream,
        "tools: auto": tools,
        "tools: required": required,
        "tools: a named function": named,
        "tools: one call": one_call,
        "tools: results": round_trip,
        "tools: stream": tools_stream,
        "tools and response_format": tools_or_json,
        "logprobs": logprobs,
        "n, seed, stop, logit_bias": many,
        "completions, also streamed and scored": completions,
        "raw response": raw,
        "models": models,
        "AsyncOpenAI": asynchronous,
        "errors: context, model, timeout": errors,
        "responses": answer_of,
        "responses: history": responses_history,
        "responses: stream": responses_stream,
        "responses: parse()": responses_parse,
        "responses: tools, results, stream": responses_tools,
        **({"embeddings": embeddings} if server.has("/v1/embeddings") else {}),
        "image": Rejected("image_url", lambda: chat.create(**pictured)),
        "reasoning_effort": Rejected(
            "reasoning_effort", lambda: chat.create(**ask, reasoning_effort="low")
        ),
        "store": Rejected("store", lambda: chat.create(**ask, store=True)),
        "web_search_options": Rejected(
            "web_search_options", lambda: chat.create(**ask, web_search_options={})
        ),
        "responses: previous_response_id": Rejected(
            "previous_response_id", lambda: answer_of(previous_response_id="resp_1")
        ),
        "responses: web search": Rejected(
            "tools.0.type", lambda: answer_of(tools=[{"type": "web_search"}])
        ),
    }
