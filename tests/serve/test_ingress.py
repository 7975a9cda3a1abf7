"""The routes against a scripted engine: instant, deterministic, no Ray."""

from __future__ import annotations

import asyncio
import json
import re

import httpx
import pytest
from openai.types import Completion
from openai.types import Model as OpenAIModel
from openai.types.chat import ChatCompletion

from ochat_ray.serve.engines.base import RequestRefusedError
from ochat_ray.serve.engines.schema_trial import PARAM as CONSTRAINT
from ochat_ray.tokenization.template import encode
from tests.serve.asking import ASK, ask, chunks, error_of, events
from tests.serve.script import Script, app_for


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
    assert error_of(ask(app, json=ASK | {"store": True}), 400)["param"] == "store"
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
    # OpenAI's words, by which LiteLLM and others recognise it.
    assert re.fullmatch(
        r"This model's maximum context length is 64 tokens\. However, your messages resulted in "
        r"\d{3} tokens\. Please reduce the length of the messages\. \(context_length_exceeded\)",
        error["message"],
    )
    app = app_for(tokenizer, script)
    error = error_of(ask(app, json=ASK | {"max_tokens": 64}), 400)
    assert "However, you requested " in error["message"]
    assert " 64 in the completion). Please reduce" in error["message"]
    assert error["param"] == "max_tokens"
    assert script.seen == []


@pytest.mark.parametrize("sent", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_a_body_that_is_not_sent_as_json_is_told_so(tokenizer, sent):
    headers = {"content-type": sent} if sent else {}
    answer = ask(app_for(tokenizer, Script(tokenizer)), content=json.dumps(ASK), headers=headers)
    error = error_of(answer, 415)
    assert "needs the header `Content-Type: application/json`" in error["message"]
    assert (sent or "missing") in error["message"]


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/v1/models/tiny"])
def test_head_is_get_without_a_body(tokenizer, path):
    app = app_for(tokenizer, Script(tokenizer))
    head, get = ask(app, "HEAD", path), ask(app, "GET", path)
    assert head.status_code == get.status_code == 200
    assert head.headers["content-type"] == get.headers["content-type"]


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
        [{"role": "user", "text": "hi"}],
        "openchat",
        tokenizer,
        condition="GPT4",
        add_generation_prompt=True,
    )
    answer = ask(app, path="/tokenize", json={"messages": messages, "condition": "GPT4"}).json()
    assert answer == {"count": len(wanted), "max_model_len": 64, "tokens": wanted}
    assert ask(app, path="/tokenize", json={"prompt": ""}).json()["tokens"] == [0]
    body = {"prompt": "a", "add_special_tokens": False, "return_token_strs": False}
    tokens = ask(app, path="/tokenize", json=body).json()["tokens"]
    assert tokens == tokenizer.encode("a", add_special_tokens=False)


@pytest.mark.parametrize("text", ["", "héllo 🙂", "<s> typed", "x" * 5000])
def test_detokenize_is_the_inverse_of_tokenize(tokenizer, text):
    app = app_for(tokenizer, Script(tokenizer), max_body_bytes=10**5)
    tokens = ask(app, path="/tokenize", json={"prompt": text}).json()["tokens"]
    assert ask(app, path="/detokenize", json={"tokens": tokens}).json() == {"prompt": "<s>" + text}
    bad = ask(app, path="/detokenize", json={"tokens": [5, 301]})
    assert error_of(bad, 400)["param"] == "tokens"
    bad = ask(app, path="/detokenize", json={"tokens": [5], "model": "other"})
    assert error_of(bad, 404)["param"] == "model"


def test_ping_and_load_are_vllms(tokenizer):
    script = Script(tokenizer)
    app = app_for(tokenizer, script)
    for method in ("GET", "POST"):
        assert (ask(app, method, "/ping").status_code, ask(app, method, "/ping").text) == (200, "")
    assert ask(app, "GET", "/load").json() == {"server_load": 0}
    script.is_ready = False
    assert ask(app, "GET", "/ping").status_code == 503


def test_load_counts_the_requests_in_progress(tokenizer):
    app = app_for(tokenizer, Script(tokenizer, late_s=0.5))

    async def send():
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            waiting = [
                asyncio.create_task(client.post("/v1/chat/completions", json=ASK)) for _ in range(3)
            ]
            await asyncio.sleep(0.2)
            load = (await client.get("/load")).json()
            await asyncio.gather(*waiting)
            return load, (await client.get("/load")).json()

    assert asyncio.run(send()) == ({"server_load": 3}, {"server_load": 0})


def test_a_final_message_is_continued_and_a_prefix_left_out(tokenizer):
    script = Script(tokenizer)
    app = app_for(tokenizer, script)
    turns = [{"role": "user", "text": "hi"}, {"role": "assistant", "text": "The"}]
    messages = [{"role": turn["role"], "content": turn["text"]} for turn in turns]
    whole, _ = encode(turns, "openchat", tokenizer)
    assert whole[-1] == script.end_of_turn
    ask(app, json=ASK | {"messages": messages, "continue_final_message": True})
    assert script.seen[-1][0] == whole[:-1]
    ask(app, json=ASK | {"messages": messages, "add_generation_prompt": False})
    assert script.seen[-1][0] == whole
    ask(app, json=ASK | {"messages": messages, "add_generation_prompt": True})
    assert script.seen[-1][0] == encode(turns, "openchat", tokenizer, add_generation_prompt=True)[0]


def test_a_truncated_prompt_is_what_counts(tokenizer):
    script = Script(tokenizer)
    app = app_for(tokenizer, script)
    message = {"role": "user", "content": "0123456789" * 20}
    body = ASK | {"messages": [message], "truncate_prompt_tokens": -1, "max_tokens": 10}
    usage = ask(app, json=body).json()["usage"]
    assert usage["prompt_tokens"] == len(script.seen[-1][0]) == 54
    body = {"model": "tiny", "prompt": [5, 6, 7, 8], "truncate_prompt_tokens": 2}
    ask(app, path="/v1/completions", json=body)
    assert script.seen[-1][0] == [7, 8]


def test_bad_words_are_banned_at_the_start_and_after_a_space(tokenizer):
    script = Script(tokenizer)
    ask(app_for(tokenizer, script), json=ASK | {"bad_words": ["sea", " red"]})
    wanted = [tokenizer.encode(t, add_special_tokens=False) for t in ("sea", " sea", "red", " red")]
    assert script.seen[-1][1].bad_words == tuple(map(tuple, wanted))


def test_a_stop_string_or_token_is_included_if_asked(tokenizer):
    app = app_for(tokenizer, Script(tokenizer, "abcdef"))
    body = ASK | {"stop": "cd"}
    for include, text in ((False, "ab"), (True, "abcd")):
        answer = ask(app, json=body | {"include_stop_str_in_output": include}).json()
        assert answer["choices"][0]["message"]["content"] == text
    body = ASK | {"include_stop_str_in_output": True, "skip_special_tokens": False}
    answer = ask(app, json=body).json()
    assert answer["choices"][0]["message"]["content"] == "abcdef<|end_of_turn|>"
    body = ASK | {"stop_token_ids": [tokenizer.encode("d", add_special_tokens=False)[0]]}
    assert ask(app, json=body).json()["choices"][0]["message"]["content"] == "abc"
    assert ask(app, json=body | {"min_tokens": 5}).json()["usage"]["completion_tokens"] > 5


def test_a_fingerprint_is_in_every_response_and_chunk(tokenizer):
    app = app_for(tokenizer, Script(tokenizer), fingerprint="fp_7")
    assert ask(app, json=ASK).json()["system_fingerprint"] == "fp_7"
    parts = chunks(ask(app, json=ASK | {"stream": True}))
    assert {part.system_fingerprint for part in parts} == {"fp_7"}
    # The scripted engine has no cache, so nothing is said of it.
    assert "prompt_tokens_details" not in ask(app, json=ASK).json()["usage"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"guided_regex": "("}, "guided_regex"),
        ({"structured_outputs": {"grammar": "a"}}, "structured_outputs.grammar"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_an_engines_refusal_names_the_field_that_was_sent(tokenizer, fields, param, stream):
    error = RequestRefusedError("cannot be compiled", CONSTRAINT)
    app = app_for(tokenizer, Script(tokenizer, error=error))
    answer = ask(app, json=ASK | fields | {"stream": stream})
    assert error_of(answer, 400)["param"] == param


def test_a_condition_is_put_before_the_roles(tokenizer):
    script = Script(tokenizer)
    ask(app_for(tokenizer, script), json=ASK | {"condition": "GPT4"})
    wanted, _ = encode(
        [{"role": "user", "text": "hi"}],
        "openchat",
        tokenizer,
        condition="GPT4",
        add_generation_prompt=True,
    )
    assert script.seen[0][0] == wanted


def test_a_lenient_server_names_what_it_left_out(tokenizer):
    body = ASK | {"tool_store": [1], "store": True}
    response = ask(app_for(tokenizer, Script(tokenizer), strict=False), json=body)
    assert response.status_code == 200
    assert response.headers["x-ochat-ray-ignored"] == "store, tool_store"
    assert error_of(ask(app_for(tokenizer, Script(tokenizer)), json=body), 400)


@pytest.mark.parametrize("stream", [False, True])
def test_names_of_any_characters_and_number_are_named_in_the_header(tokenizer, stream):
    names = ["名前", "a\r\nSet-Cookie: b", "x" * 10_000, *(f"field-{n}" for n in range(60))]
    app = app_for(tokenizer, Script(tokenizer), strict=False, max_body_bytes=10**6)
    response = ask(app, json=ASK | dict.fromkeys(names, 1) | {"stream": stream})
    assert response.status_code == 200
    header = response.headers["x-ochat-ray-ignored"]
    assert header.endswith("and 31 more")
    assert len(header) < 3000
    assert "set-cookie" not in response.headers


def test_a_message_of_a_name_is_answered_and_says_that_the_name_has_no_effect(tokenizer):
    body = ASK | {"messages": [{"role": "user", "content": "hi", "name": "bob"}]}
    response = ask(app_for(tokenizer, Script(tokenizer)), json=body)
    assert response.status_code == 200
    assert response.headers["x-ochat-ray-ignored"] == "messages.name"


def test_usage_is_in_every_chunk_if_asked(tokenizer):
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = ASK | {"stream": True, "stream_options": options, "max_tokens": 3}
    parts = chunks(ask(app_for(tokenizer, Script(tokenizer, "abcdef")), json=body))
    counts = [part.usage.completion_tokens for part in parts if part.usage]
    assert counts[-1] == 3
    assert counts == sorted(counts)
    assert len(counts) >= len(parts) - 1  # the role comes before any token


def test_a_field_that_the_engine_cannot_do_is_refused(tokenizer):
    app = app_for(tokenizer, Script(tokenizer), engine="scripted")
    error = error_of(ask(app, json=ASK | {"logit_bias": {"5": 1}}), 400)
    assert (error["param"], error["code"]) == ("logit_bias", "unsupported_parameter")


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


def test_no_text_of_a_request_acts_on_the_terminal_that_shows_the_log(tokenizer, caplog):
    """C0 is escaped by JSON; C1 (a CSI in one character), DEL and marks that turn text are not."""
    text = "a\x1b[2J\x9b2J\x85\x7f\u202eb\u2028é"
    with caplog.at_level("INFO", logger="ochat_ray.serve.requests"):
        message = {"role": "user", "content": text}
        ask(
            app_for(tokenizer, Script(tokenizer), log_text=True), json=ASK | {"messages": [message]}
        )
    (line,) = (record.message for record in caplog.records)
    assert json.loads(line)["prompt"]["messages"][0]["content"] == text
    assert all(character.isprintable() for character in line)
    assert "é" in line


def test_cors_is_off_unless_origins_are_given(tokenizer):
    headers = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    closed = ask(app_for(tokenizer, Script(tokenizer)), "OPTIONS", headers=headers)
    assert "access-control-allow-origin" not in closed.headers
    app = app_for(tokenizer, Script(tokenizer), cors_origins=("https://a.example",))
    opened = ask(app, "OPTIONS", headers=headers)
    assert opened.headers["access-control-allow-origin"] == "https://a.example"
    # OpenAI's SDK for JavaScript adds headers of its own.
    asked = "authorization, content-type, x-stainless-os, x-stainless-retry-count"
    sdk = ask(app, "OPTIONS", headers=headers | {"Access-Control-Request-Headers": asked})
    assert sdk.status_code == 200
    assert set(asked.split(", ")) <= set(sdk.headers["access-control-allow-headers"].split(", "))
    other = ask(app, "OPTIONS", headers=headers | {"Origin": "https://b.example"})
    assert "access-control-allow-origin" not in other.headers


def test_a_model_card_says_where_the_model_comes_from(tokenizer):
    training = {"recipe": "demo", "data_digest": "abc", "step": 5}
    app = app_for(tokenizer, Script(tokenizer), training=training)
    card = ask(app, "GET", "/v1/models/tiny").json()
    assert OpenAIModel.model_validate(card, strict=True).owned_by == "ochat_ray"
    assert (card["training"]["data_digest"], card["training"]["step"]) == ("abc", 5)
