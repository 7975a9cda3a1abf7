"""Usual calls of LlamaIndex."""

from typing import Any, Literal

from client_common import MODEL, Calls, Server, valid, weather_class


def llama_index_calls(server: Server) -> Calls:
    from llama_index.core.agent.workflow import FunctionAgent
    from llama_index.core.llms import ChatMessage
    from llama_index.core.prompts import PromptTemplate
    from llama_index.core.tools import FunctionTool
    from llama_index.embeddings.openai_like import OpenAILikeEmbedding
    from llama_index.llms.openai_like import OpenAILike, OpenAILikeResponses

    forecast = weather_class()
    where: dict[str, Any] = {"model": MODEL, "api_base": server.url, "api_key": "none"}
    where |= {"max_retries": 0, "context_window": 16384}
    model = OpenAILike(is_chat_model=True, is_function_calling_model=True, max_tokens=400, **where)
    plain = OpenAILike(is_chat_model=False, max_tokens=16, **where)
    responding = OpenAILikeResponses(is_function_calling_model=True, max_output_tokens=400, **where)
    user = ChatMessage(role="user", content="hi")

    def weather(city: Literal["Bonn", "Paris"], days: int) -> str:
        """Return the weather."""
        return f"Sunny in {city} for {days} days."

    tool = FunctionTool.from_defaults(weather)

    def history(model: Any = model) -> None:
        system = ChatMessage(role="system", content="Be brief.")
        first = model.chat([system, user]).message
        model.chat([system, user, first, user])

    def tools(model: Any = model) -> None:
        first = model.chat_with_tools([tool], user_msg="hi", tool_required=True)
        calls = model.get_tool_calls_from_response(first)
        for call in calls:
            valid(call.tool_kwargs)
        results = [
            ChatMessage(
                role="tool", content="Sunny.", additional_kwargs={"tool_call_id": call.tool_id}
            )
            for call in calls
        ]
        model.chat_with_tools([tool], chat_history=[user, first.message, *results])

    def tools_stream(model: Any = model) -> None:
        *_, last = model.stream_chat_with_tools([tool], user_msg="hi", tool_required=True)
        for call in model.get_tool_calls_from_response(last):
            valid(call.tool_kwargs)

    def predict(model: Any = model) -> None:
        valid(model.structured_predict(forecast, PromptTemplate("hi")))

    def schema() -> None:
        guided = OpenAILike(
            is_chat_model=True, max_tokens=200, should_use_structured_outputs=True, **where
        )
        valid(guided.structured_predict(forecast, PromptTemplate("hi")))

    async def agent(model: Any = model) -> None:
        await FunctionAgent(tools=[weather], llm=model).run("hi")

    async def asynchronous() -> None:
        assert [part async for part in await model.astream_chat([user])]

    def embeddings() -> None:
        names = {"model_name": MODEL, "api_base": server.url, "api_key": "none"}
        OpenAILikeEmbedding(**names).get_text_embedding_batch(["a", "b"])

    return {
        "OpenAILike.chat": lambda: model.chat([user]),
        "history": history,
        "stream_chat": lambda: list(model.stream_chat([user])),
        "astream_chat": asynchronous,
        "complete": lambda: plain.complete("The sea"),
        "stream_complete": lambda: list(plain.stream_complete("The sea")),
        "chat_with_tools and results": tools,
        "stream_chat_with_tools": tools_stream,
        "structured_predict by tools": predict,
        "structured_predict by response_format": schema,
        "FunctionAgent": agent,
        "OpenAILikeResponses: history": lambda: history(responding),
        "OpenAILikeResponses: stream_chat": lambda: list(responding.stream_chat([user])),
        "OpenAILikeResponses: tools and results": lambda: tools(responding),
        "OpenAILikeResponses: tools, stream": lambda: tools_stream(responding),
        "OpenAILikeResponses: structured_predict": lambda: predict(responding),
        **({"OpenAILikeEmbedding": embeddings} if server.has("/v1/embeddings") else {}),
    }
