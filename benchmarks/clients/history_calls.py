"""Usual calls of applications that are not libraries, as request bodies."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

from client_common import MODEL, QUESTION, TOOL, Calls, Server


def history_calls(server: Server) -> Calls:
    """Bodies as applications send them that are not libraries."""

    def post(messages: list[Any], **fields: Any) -> Callable[[], Any]:
        body = {"model": MODEL, "messages": messages, "max_tokens": 16} | fields
        return lambda: _post(f"{server.url}/chat/completions", body)

    def turn(role: str, content: Any, **fields: Any) -> dict[str, Any]:
        return {"role": role, "content": content, **fields}

    called = {
        "index": 0,
        "id": "call_1",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city": "Bonn", "days": 1}'},
    }
    two = [called, {**called, "index": 1, "id": "call_2"}]
    results = [turn("tool", "Sunny.", tool_call_id=call["id"]) for call in two]
    edit = "a.py\n```python\n<<<<<<< SEARCH\na\n=======\nb\n>>>>>>> REPLACE\n```"
    part = {"type": "text", "text": "hi"}
    stream = {"stream": True, "stream_options": {"include_usage": True}}
    return {
        "aider: examples, files and reminders": post(
            [
                turn("system", "Act as an expert software developer."),
                turn("user", "Change a to b."), turn("assistant", edit),
                turn("user", "I switched to a new code base."), turn("assistant", "Ok."),
                turn("user", "*Add these files* a.py"), turn("assistant", "Ok."),
                turn("user", "Change it."), turn("system", "# *SEARCH/REPLACE block* rules"),
            ],
            temperature=0, **stream,
        ),
        "aider: cache_control": post(
            [
                turn("system", [{**part, "cache_control": {"type": "ephemeral"}}]),
                turn("user", "Go."),
            ],
            temperature=0, **stream,
        ),
        "Open WebUI: chat": post(
            [
                turn("system", "User Context:\n\nNone"), turn("user", "hi"),
                turn("assistant", "yes", tool_calls=[]), turn("user", [part]),
            ],
            temperature=0.8, top_p=0.9, seed=0, stop=["###"], frequency_penalty=0.0,
            logit_bias={}, reasoning_effort=None, **stream,
        ),
        "Open WebUI: native tools": post(
            [*QUESTION, turn("assistant", "", tool_calls=two), *results],
            tools=[TOOL], **stream,
        ),
        "Open WebUI: title": post(
            [turn("user", "Create a title.")], stream=False, max_completion_tokens=16,
            max_tokens=None, response_format={"type": "json_object"},
        ),
        "two users and two assistants in a row": post(
            [turn("user", "a"), turn("user", "b"), turn("assistant", ""), turn("assistant", "c")]
        ),
        "LibreChat, Continue": post(
            [turn("developer", "Be brief."), turn("user", "hi", name="ann")],
            user="65f", presence_penalty=0, top_p=1, n=1, **stream,
        ),
    }  # fmt: skip


def _post(url: str, body: Any) -> bytes:
    headers = {"Content-Type": "application/json", "Authorization": "Bearer none"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=120) as response:  # noqa: S310
            answer: bytes = response.read()
    except urllib.error.HTTPError as error:
        raise AssertionError(error.read().decode()) from None
    assert b'"error"' not in answer, answer
    return answer
