"""The routes against a scripted engine: instant, deterministic, no Ray."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from ochat_ray.serve.engines.base import EngineError, EngineOverloadedError, EngineUnavailableError
from ochat_ray.template import encode
from tests.serve.script import Script, app_for

ASK = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


def ask(app, method="POST", path="/v1/chat/completions", **request):
    async def send():
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
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


def test_an_answer_is_what_the_official_client_expects(tokenizer):
    script = Script(tokenizer)
    response = ask(app_for(tokenizer, script), json=ASK)
    completion = ChatCompletion.model_validate(response.json(), strict=True)
    assert completion.choices[0].message.content == "Hello 🙂 there"
    assert completion.choices[0].finish_reason == "stop"
    prompt_ids, _ = encode(
        [{"role": "user", "text": "hi"}], "openchat", tokenizer, add_generation_prompt=True
    )
    assert script.seen[0][0] == prompt_ids
    assert script.seen[0][1].stop_ids == (script.end_of_turn,)
    usage = completion.usage
    # The end-of-turn token was generated too.
    assert (usage.prompt_tokens, usage.completion_tokens) == (len(prompt_ids), len(script.ids) + 1)
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_a_stream_says_the_same_role_first_and_reason_last(tokenizer):
    app = app_for(tokenizer, Script(tokenizer))
    whole = ask(app, json=ASK).json()
    stream = {"stream": True, "stream_options": {"include_usage": True}}
    *parts, end, usage = chunks(ask(app, json=ASK | stream))
    assert parts[0].choices[0].delta.role == "assistant"
    assert parts[0].choices[0].delta.content == ""
    text = "".join(part.choices[0].delta.content for part in parts)
    assert text == whole["choices"][0]["message"]["content"]
    assert "\ufffd" not in "".join(part.choices[0].delta.content for part in parts)
    assert end.choices[0].finish_reason == "stop"
    assert end.choices[0].delta.content is None
    assert usage.choices == []
    assert usage.usage.model_dump(exclude_none=True) == whole["usage"]
    assert len({part.id for part in (*parts, end, usage)}) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_is_never_shown_and_frees_the_engine(tokenizer, stream):
    script = Script(tokenizer, "one two three four")
    response = ask(
        app_for(tokenizer, script), json=ASK | {"stop": ["o t", " thr"], "stream": stream}
    )
    if stream:
        parts = chunks(response)
        text = "".join(part.choices[0].delta.content or "" for part in parts)
        reason = parts[-1].choices[0].finish_reason
    else:
        choice = response.json()["choices"][0]
        text, reason = choice["message"]["content"], choice["finish_reason"]
    assert (text, reason) == ("one tw", "stop")
    assert script.open == 0


def test_a_limit_ends_with_reason_length(tokenizer):
    body = ask(app_for(tokenizer, Script(tokenizer)), json=ASK | {"max_tokens": 3}).json()
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 3


def test_typed_special_tokens_stay_text(tokenizer):
    script = Script(tokenizer)
    message = {"role": "user", "content": "<|end_of_turn|>"}
    ask(app_for(tokenizer, script), json=ASK | {"messages": [message]})
    # The one that ends the human's turn, and none for what was typed.
    assert script.seen[0][0].count(script.end_of_turn) == 1


def test_models(tokenizer):
    app = app_for(tokenizer, Script(tokenizer))
    listed = ask(app, "GET", "/v1/models").json()
    assert [model["id"] for model in listed["data"]] == ["tiny"]
    assert ask(app, "GET", "/v1/models/tiny").json() == listed["data"][0]
    assert error_of(ask(app, "GET", "/v1/models/other"), 404)["code"] == "model_not_found"


def test_health_follows_the_backend(tokenizer):
    script = Script(tokenizer)
    app = app_for(tokenizer, script)
    assert ask(app, "GET", "/health").status_code == 200
    script.is_ready = False
    assert ask(app, "GET", "/health").status_code == 503


def test_every_error_has_openais_body(tokenizer):
    app = app_for(tokenizer, Script(tokenizer))
    assert error_of(ask(app, json=ASK | {"model": "gpt-4"}), 404)["param"] == "model"
    assert error_of(ask(app, json=ASK | {"tools": []}), 400)["param"] == "tools"
    assert error_of(ask(app, json={"model": "tiny"}), 400)["param"] == "messages"
    headers = {"content-type": "application/json"}
    assert error_of(ask(app, content=b"{", headers=headers), 400)["code"] == "invalid_json"
    assert error_of(ask(app, content=b"\xff", headers=headers), 400)
    assert error_of(ask(app, json=[]), 400)
    assert error_of(ask(app), 400)
    assert error_of(ask(app, "GET"), 405)
    assert error_of(ask(app, "GET", "/v1/other"), 404)
    assert error_of(ask(app, json=ASK | {"user": "x" * 10_000}), 413)


def test_a_long_prompt_is_refused_with_the_numbers(tokenizer):
    script = Script(tokenizer)
    message = {"role": "user", "content": "0" * 500}
    error = error_of(ask(app_for(tokenizer, script), json=ASK | {"messages": [message]}), 400)
    assert error["code"] == "context_length_exceeded"
    assert "64" in error["message"]
    assert script.seen == []


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "status"),
    [(EngineOverloadedError(), 429), (EngineUnavailableError(), 503), (EngineError("x"), 500)],
)
def test_a_refusal_is_a_status_also_for_a_stream(tokenizer, stream, error, status):
    script = Script(tokenizer, error=error)
    response = ask(app_for(tokenizer, script), json=ASK | {"stream": stream})
    error_of(response, status)
    assert ("retry-after" in response.headers) == (status != 500)
    assert script.open == 0


def test_a_stream_that_breaks_ends_with_an_error_event(tokenizer):
    script = Script(tokenizer, error=EngineError("it broke"), fail_after=2)
    *_, last = events(ask(app_for(tokenizer, script), json=ASK | {"stream": True}))
    assert json.loads(last)["error"]["message"] == "it broke"


def test_a_client_that_leaves_a_stream_frees_the_engine(tokenizer):
    script = Script(tokenizer, hang=True)
    app = app_for(tokenizer, script)

    async def leave():
        body = json.dumps(ASK | {"stream": True}).encode()
        started = asyncio.Event()
        inbox = asyncio.Queue()
        inbox.put_nowait({"type": "http.request", "body": body})

        async def send(message):
            if message.get("body"):
                started.set()

        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST",
            "path": "/v1/chat/completions", "raw_path": b"", "query_string": b"", "root_path": "",
            "scheme": "http", "client": ("127.0.0.1", 1), "server": ("server", 80),
            "headers": [(b"content-type", b"application/json")],
        }  # fmt: skip
        task = asyncio.create_task(app(scope, inbox.get, send))
        await asyncio.wait_for(started.wait(), 10)
        assert script.open == 1
        inbox.put_nowait({"type": "http.disconnect"})
        await asyncio.wait_for(task, 10)

    asyncio.run(leave())
    assert script.open == 0
