"""Answers whole and as streams, and how they end, against a scripted engine: no Ray."""

from __future__ import annotations

import asyncio
import json

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from ochat_ray.serve.engines.base import EngineError, EngineOverloadedError, EngineUnavailableError
from tests.serve.asking import ASK, ask, chunks, error_of, events
from tests.serve.script import Script, app_for


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


def test_an_answer_goes_on_past_the_end_of_the_turn_if_asked(tokenizer):
    script = Script(tokenizer)
    fields = {"ignore_eos": True, "max_tokens": len(script.ids) + 5}
    body = ask(app_for(tokenizer, script), json=ASK | fields).json()
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["choices"][0]["message"]["content"].startswith("Hello 🙂 thereHell")


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


@pytest.mark.parametrize(("stream", "late_s"), [(True, 0), (True, 60), (False, 0)])
def test_a_client_that_leaves_frees_the_engine(tokenizer, stream, late_s):
    script = Script(tokenizer, hang=True, late_s=late_s)
    app = app_for(tokenizer, script)

    def begun(sent):
        if late_s:
            return script.seen
        return not sent.empty() if stream else script.open

    async def leave():
        sent, inbox = asyncio.Queue(), asyncio.Queue()
        inbox.put_nowait(body_message(stream=stream))
        task = asyncio.create_task(app(SCOPE, inbox.get, sent.put))
        while not begun(sent):
            await asyncio.sleep(0.001)
        inbox.put_nowait({"type": "http.disconnect"})
        await asyncio.wait_for(task, 10)

    asyncio.run(leave())
    assert script.open == 0


def test_a_client_that_leaves_as_its_stream_begins_frees_the_engine(tokenizer):
    script = Script(tokenizer, hang=True)
    app = app_for(tokenizer, script)
    calls = []

    async def receive():
        calls.append(None)
        if len(calls) == 1:
            return body_message(stream=True)
        if len(calls) == 2:  # the wait for the first token, which is given up
            await asyncio.sleep(3600)
        return {"type": "http.disconnect"}

    async def leave():
        await asyncio.wait_for(app(SCOPE, receive, asyncio.Queue().put), 10)
        assert script.open == 0  # before any generator is collected

    asyncio.run(leave())
    assert len(calls) == 3


def body_message(**fields):
    return {"type": "http.request", "body": json.dumps(ASK | fields).encode()}


SCOPE = {
    "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST",
    "path": "/v1/chat/completions", "raw_path": b"", "query_string": b"", "root_path": "",
    "scheme": "http", "client": ("127.0.0.1", 1), "server": ("server", 80),
    "headers": [(b"content-type", b"application/json")],
}  # fmt: skip


def test_n_answers_have_indices_and_their_tokens_add_up(tokenizer):
    script = Script(tokenizer)
    app = app_for(tokenizer, script)
    one = ask(app, json=ASK).json()["usage"]
    whole = ChatCompletion.model_validate(ask(app, json=ASK | {"n": 3, "seed": 5}).json())
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    assert {choice.message.content for choice in whole.choices} == {"Hello 🙂 there"}
    assert whole.usage.prompt_tokens == one["prompt_tokens"]
    assert whole.usage.completion_tokens == 3 * one["completion_tokens"]
    # A seed of its own each, or three answers would always be one.
    assert [sampling.seed for _, sampling in script.seen[1:]] == [5, 6, 7]

    parts = chunks(ask(app, json=ASK | {"n": 3, "stream": True}))
    for index in range(3):
        own = [part.choices[0] for part in parts if part.choices[0].index == index]
        assert own[0].delta.role == "assistant"
        assert "".join(choice.delta.content or "" for choice in own) == "Hello 🙂 there"
        assert [choice.finish_reason for choice in own if choice.finish_reason] == ["stop"]
        assert own[-1].finish_reason == "stop"
    assert script.open == 0


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_are_of_the_tokens_that_are_shown(tokenizer, stream):
    app = app_for(tokenizer, Script(tokenizer, "naïve one two three"))
    fields = {"logprobs": True, "top_logprobs": 1, "stop": " thr", "stream": stream}
    response = ask(app, json=ASK | fields)
    if stream:
        found = [part.choices[0] for part in chunks(response)]
        text = "".join(choice.delta.content or "" for choice in found)
        content = [e for choice in found if choice.logprobs for e in choice.logprobs.content]
    else:
        choice = ChatCompletion.model_validate(response.json(), strict=True).choices[0]
        text, content = choice.message.content, choice.logprobs.content
    assert text == "naïve one two"
    assert b"".join(bytes(entry.bytes) for entry in content).decode() == text
    assert {entry.logprob for entry in content} == {-0.25}
    assert all(entry.top_logprobs[0].token == entry.token for entry in content)
    # A token that begins or ends within a character is spelt in bytes.
    halves = [entry for entry in content if entry.token.startswith("bytes:")]
    assert [bytes(entry.bytes) for entry in halves] == [b"na\xc3", b"\xafve"]
    assert halves[0].token == "bytes:\\x6e\\x61\\xc3"


def test_a_stream_that_waits_for_its_first_token_is_kept_alive(tokenizer):
    app = app_for(tokenizer, Script(tokenizer, late_s=0.2), keep_alive_s=0.05)
    response = ask(app, json=ASK | {"stream": True})
    assert response.text.startswith("data: ")
    assert response.text.count(": waiting\n\n") >= 2
    kept = [line for line in response.text.split("\n\n") if line.startswith("data: {")]
    parts = [ChatCompletionChunk.model_validate_json(line[6:]) for line in kept]
    assert "".join(part.choices[0].delta.content or "" for part in parts) == "Hello 🙂 there"


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_has_a_deadline(tokenizer, stream):
    script = Script(tokenizer, hang=True)
    app = app_for(tokenizer, script, request_timeout_s=0.1)
    response = ask(app, json=ASK | {"stream": stream})
    error = json.loads(events(response)[-1])["error"] if stream else error_of(response, 503)
    assert error["code"] == "deadline_exceeded"
    assert script.open == 0


def test_one_of_two_answers_that_fails_ends_both(tokenizer):
    script = Script(tokenizer, error=EngineError("it broke"), fail_after=2)
    app = app_for(tokenizer, script)
    *_, last = events(ask(app, json=ASK | {"stream": True, "n": 2}))
    assert json.loads(last)["error"]["message"] == "it broke"
    assert script.open == 0
