"""Usual calls of Instructor."""

from __future__ import annotations

from typing import Any

from client_common import MODEL, QUESTION, Calls, Server, valid, weather_class


def instructor_calls(server: Server) -> Calls:
    import instructor
    import openai
    from instructor import Mode

    forecast = weather_class()

    def create(mode: Any, response_model: Any = forecast, **fields: Any) -> Any:
        client = instructor.from_openai(
            openai.OpenAI(base_url=server.url, api_key="none", max_retries=0), mode=mode
        )
        fields = {
            "messages": QUESTION,
            "model": MODEL,
            "max_tokens": 400,
            "max_retries": 3,
        } | fields
        return client.chat.completions.create(response_model=response_model, **fields)

    def partial() -> None:
        part: Any = instructor.Partial
        *_, last = create(Mode.TOOLS, part.__class_getitem__(forecast), stream=True)
        valid(last)

    def responses() -> None:
        client = instructor.from_openai(
            openai.OpenAI(base_url=server.url, api_key="none", max_retries=0),
            mode=Mode.RESPONSES_TOOLS,
        )
        fields = {"model": MODEL, "input": "hi", "max_output_tokens": 400}
        valid(client.responses.create(response_model=forecast, **fields))

    async def asynchronous() -> None:
        client = instructor.from_openai(openai.AsyncOpenAI(base_url=server.url, api_key="none"))
        fields = {"messages": QUESTION, "model": MODEL, "max_tokens": 400}
        valid(await client.chat.completions.create(response_model=forecast, **fields))

    def json_mode() -> None:
        from pydantic import BaseModel

        class Anything(BaseModel):
            city: Any = None

        create(Mode.JSON, Anything)

    def retried() -> None:
        from pydantic import BaseModel, field_validator

        class Strange(BaseModel):
            """Fails once, so that the client sends the answer back with the error."""

            days: int
            seen: int = 0

            @field_validator("days")
            @classmethod
            def _second(cls, value: int) -> int:
                attempts.append(value)
                if len(attempts) < 2:
                    raise ValueError("again")
                return value

        attempts: list[int] = []
        create(Mode.TOOLS, Strange)
        assert len(attempts) >= 2

    return {
        "TOOLS": lambda: valid(create(Mode.TOOLS)),
        "TOOLS, sent back with an error": retried,
        "TOOLS_STRICT": lambda: valid(create(Mode.TOOLS_STRICT)),
        "Partial, stream": partial,
        "JSON": json_mode,
        "JSON_SCHEMA": lambda: valid(create(Mode.JSON_SCHEMA)),
        "RESPONSES_TOOLS": responses,
        "AsyncOpenAI": asynchronous,
    }
