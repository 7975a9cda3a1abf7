"""The routes against a scripted engine: instant, deterministic, no Ray."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
from openai.types import Completion
from openai.types import Model as OpenAIModel
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from ochat_ray.serve.engines.base import EngineError, EngineOverloadedError, EngineUnavailableError
from ochat_ray.template import encode
from tests.serve.script import Script, app_for

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


def test_an_answer_goes_on_past_the_end_of_the_turn_if_asked(tokenizer):
    script = Script(tokenizer)
    fields = {"ignore_eos": True, "max_tokens": len(script.ids) + 5}
    body = ask(app_for(tokenizer, script), json=ASK | fields).json()
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["choices"][0]["message"]["content"].startswith("Hello 🙂 thereHell")


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


@pytest.mark.parametrize("late_s", [0, 60])
def test_a_client_that_leaves_a_stream_frees_the_engine(tokenizer, late_s):
    script = Script(tokenizer, hang=True, late_s=late_s)
    app = app_for(tokenizer, script)

    async def leave():
        sent, inbox = asyncio.Queue(), asyncio.Queue()
        inbox.put_nowait(body_message(stream=True))
        task = asyncio.create_task(app(SCOPE, inbox.get, sent.put))
        while not script.seen or (not late_s and sent.empty()):
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


def test_completions_go_on_with_text_and_ids_without_the_template(tokenizer):
    script = Script(tokenizer)
    app = app_for(tokenizer, script)
    body = {"model": "tiny", "prompt": ["hi", "<s>"], "n": 2, "max_tokens": 30, "logprobs": 0}
    whole = Completion.model_validate(ask(app, path="/v1/completions", json=body).json())
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
    assert {choice.text for choice in whole.choices} == {"Hello 🙂 there"}
    logprobs = whole.choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(script.ids)
    assert logprobs.text_offset[0] == 0
    assert logprobs.text_offset[-1] < len("Hello 🙂 there")
    text_ids = tokenizer("hi", add_special_tokens=False)["input_ids"]
    assert script.seen[0][0] == [tokenizer.bos_token_id, *text_ids]
    # Typed, a special token's name is text.
    assert tokenizer.bos_token_id not in script.seen[2][0][1:]

    ids = {"model": "tiny", "prompt": [5, 6], "stream": True}
    parts = [json.loads(e) for e in events(ask(app, path="/v1/completions", json=ids))[:-1]]
    assert {part["object"] for part in parts} == {"text_completion"}
    assert "".join(part["choices"][0]["text"] for part in parts) == "Hello 🙂 there"
    assert [part["choices"][0]["finish_reason"] for part in parts][-1] == "stop"
    assert script.seen[-1][0] == [5, 6]
    bad = ask(app, path="/v1/completions", json={"model": "tiny", "prompt": [301]})
    assert error_of(bad, 400)["param"] == "prompt"


def test_tokenize_says_what_the_model_reads(tokenizer):
    app = app_for(tokenizer, Script(tokenizer))
    messages = [{"role": "user", "content": "hi"}]
    wanted, _ = encode(
        [{"role": "user", "text": "hi"}], "openchat", tokenizer,
        condition="GPT4", add_generation_prompt=True,
    )  # fmt: skip
    answer = ask(app, path="/tokenize", json={"messages": messages, "condition": "GPT4"}).json()
    assert answer == {"count": len(wanted), "max_model_len": 64, "tokens": wanted}
    assert ask(app, path="/tokenize", json={"prompt": ""}).json()["tokens"] == [0]


def test_a_condition_is_put_before_the_roles(tokenizer):
    script = Script(tokenizer)
    ask(app_for(tokenizer, script), json=ASK | {"condition": "GPT4"})
    wanted, _ = encode(
        [{"role": "user", "text": "hi"}], "openchat", tokenizer,
        condition="GPT4", add_generation_prompt=True,
    )  # fmt: skip
    assert script.seen[0][0] == wanted


def test_a_lenient_server_names_what_it_left_out(tokenizer):
    body = ASK | {"tools": [], "store": False}
    response = ask(app_for(tokenizer, Script(tokenizer), strict=False), json=body)
    assert response.status_code == 200
    assert response.headers["x-ochat-ray-ignored"] == "store, tools"
    assert error_of(ask(app_for(tokenizer, Script(tokenizer)), json=body), 400)


def test_a_field_that_the_engine_cannot_do_is_refused(tokenizer):
    app = app_for(tokenizer, Script(tokenizer), engine="scripted")
    error = error_of(ask(app, json=ASK | {"logit_bias": {"5": 1}}), 400)
    assert (error["param"], error["code"]) == ("logit_bias", "unsupported_parameter")


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


def test_a_client_that_leaves_without_a_stream_frees_the_engine(tokenizer):
    script = Script(tokenizer, hang=True)
    app = app_for(tokenizer, script)

    async def leave():
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            task = asyncio.create_task(client.post("/v1/chat/completions", json=ASK))
            while not script.open:
                await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.wait([task])

    asyncio.run(leave())
    assert script.open == 0


def test_one_of_two_answers_that_fails_ends_both(tokenizer):
    script = Script(tokenizer, error=EngineError("it broke"), fail_after=2)
    app = app_for(tokenizer, script)
    *_, last = events(ask(app, json=ASK | {"stream": True, "n": 2}))
    assert json.loads(last)["error"]["message"] == "it broke"
    assert script.open == 0


def test_a_conversation_is_one_session_from_turn_to_turn(tokenizer):
    script = Script(tokenizer)
    app = app_for(tokenizer, script)
    later = [*ASK["messages"], {"role": "assistant", "content": "a"}, ASK["messages"][0]]
    ask(app, json=ASK)
    ask(app, json=ASK | {"messages": later})
    ask(app, json=ASK | {"messages": [{"role": "user", "content": "other"}]})
    ask(app, json=ASK, headers={"x-session-id": "mine"})
    assert script.sessions[0] == script.sessions[1] != script.sessions[2]
    assert script.sessions[3] == "mine"


def test_metrics_tell_what_happened(tokenizer):
    app = app_for(tokenizer, Script(tokenizer))
    usage = ask(app, json=ASK).json()["usage"]
    ask(app, json=ASK | {"stream": True})
    ask(app, json=ASK | {"model": "other"})
    text = ask(app, "GET", "/metrics").text
    of = '{model="tiny",replica="r1"}'
    assert f"ochat_ray_generated_tokens_total{of} {2.0 * usage['completion_tokens']}" in text
    assert f"ochat_ray_prompt_tokens_total{of} {2.0 * usage['prompt_tokens']}" in text
    assert f"ochat_ray_time_to_first_token_seconds_count{of} 2.0" in text
    assert f"ochat_ray_time_per_output_token_seconds_count{of} 2.0" in text
    assert f"ochat_ray_running_requests{of} 0.0" in text
    assert 'code="model_not_found"' in text
    assert 'status="404"} 1.0' in text
    # A name that a client made up makes no series of its own.
    assert '"other"' not in text.replace('route="other"', "")


def test_the_request_log_holds_text_only_if_asked(tokenizer, caplog):
    with caplog.at_level("INFO", logger="ochat_ray.serve.requests"):
        ask(app_for(tokenizer, Script(tokenizer)), json=ASK)
        ask(app_for(tokenizer, Script(tokenizer), log_text=True), json=ASK)
    silent, talkative = (json.loads(record.message) for record in caplog.records)
    assert silent["finish_reasons"] == ["stop"]
    assert silent["completion_tokens"] > 0
    assert silent["ttft_s"] <= silent["seconds"]
    assert not {"prompt", "answer"} & set(silent)
    assert talkative["answer"] == ["Hello 🙂 there"]
    assert talkative["prompt"]["messages"][0]["content"] == "hi"


def test_cors_is_off_unless_origins_are_given(tokenizer):
    headers = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    closed = ask(app_for(tokenizer, Script(tokenizer)), "OPTIONS", headers=headers)
    assert "access-control-allow-origin" not in closed.headers
    app = app_for(tokenizer, Script(tokenizer), cors_origins=("https://a.example",))
    opened = ask(app, "OPTIONS", headers=headers)
    assert opened.headers["access-control-allow-origin"] == "https://a.example"


def test_a_model_card_says_where_the_model_comes_from(tokenizer):
    training = {"recipe": "demo", "data_digest": "abc", "step": 5}
    app = app_for(tokenizer, Script(tokenizer), training=training)
    card = ask(app, "GET", "/v1/models/tiny").json()
    assert OpenAIModel.model_validate(card, strict=True).owned_by == "ochat_ray"
    assert (card["training"]["data_digest"], card["training"]["step"]) == ("abc", 5)
