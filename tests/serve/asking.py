"""Requests to an application in this process, and what came back."""

from __future__ import annotations

import asyncio
import json

import httpx
from openai.types.chat import ChatCompletionChunk

ASK = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


def ask(app, method="POST", path="/v1/chat/completions", **request):
    async def send():
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.request(method, path, **request)

    return asyncio.run(send())


def events(response):
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = response.text.split("\n\n")
    assert lines.pop() == ""
    return [line.removeprefix("data: ") for line in lines]


def chunks(response):
    *parts, done = events(response)
    assert done == "[DONE]"
    return [ChatCompletionChunk.model_validate(json.loads(part), strict=True) for part in parts]


def error_of(response, status):
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error
