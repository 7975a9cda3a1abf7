from __future__ import annotations

import pytest
from pydantic import ValidationError

from ochat_ray.schema import Turn
from ochat_ray.serve.engines.base import (
    EngineError,
    EngineOverloadedError,
    EngineUnavailableError,
    RequestRefusedError,
    Sampling,
)
from ochat_ray.serve.protocol import ApiError, ChatRequest, to_api_error, validation_error


def body(**fields):
    return {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}


def refusal(**fields):
    with pytest.raises(ValidationError) as caught:
        ChatRequest.model_validate(body(**fields))
    return validation_error(caught.value.errors())


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": []}, "tools"),
        ({"logprobs": True}, "logprobs"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"nonsense": None}, "nonsense"),
        ({"n": 2}, "n"),
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": "0.5"}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"seed": 2**63}, "seed"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", ""]}, "stop"),
        ({"stop": [5]}, "stop"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "x", "name": "me"}]}, "messages.0.name"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(fields, param):
    error = refusal(**fields)
    assert (error.status, error.param) == (400, param)
    assert param.split(".")[-1] in error.message or param in error.message


def test_an_image_part_is_refused():
    part = {"type": "image_url", "image_url": {"url": "x"}}
    error = refusal(messages=[{"role": "user", "content": [part]}])
    assert error.status == 400
    assert error.param.startswith("messages.0.content")


def test_text_parts_are_joined_and_a_developer_is_the_system():
    request = ChatRequest.model_validate(
        body(
            messages=[
                {"role": "developer", "content": "be brief"},
                {"role": "user", "content": [{"type": "text", "text": t} for t in ("a", "b")]},
                {"role": "assistant", "content": "c", "refusal": None},
            ]
        )
    )
    assert [message.turn() for message in request.messages] == [
        Turn(role="system", text="be brief"),
        Turn(role="user", text="ab"),
        Turn(role="assistant", text="c"),
    ]


def sampling(request, prompt_tokens=10, context_length=100):
    return request.sampling(
        prompt_tokens=prompt_tokens, context_length=context_length, vocabulary=50, stop_ids=(7,)
    )


def test_defaults_are_openais_and_the_answer_may_fill_the_context():
    assert sampling(ChatRequest.model_validate(body())) == Sampling(
        max_tokens=90, temperature=1.0, top_p=1.0, top_k=0, seed=None, stop_ids=(7,)
    )


@pytest.mark.parametrize(
    ("top_k", "meant"), [(None, 0), (-1, 0), (0, 0), (1, 1), (49, 49), (50, 0)]
)
def test_top_k_of_the_whole_vocabulary_is_no_top_k(top_k, meant):
    assert sampling(ChatRequest.model_validate(body(top_k=top_k))).top_k == meant


@pytest.mark.parametrize("fields", [{"temperature": 0}, {"top_k": 1}, {"top_p": 0}])
def test_three_ways_to_be_greedy(fields):
    assert sampling(ChatRequest.model_validate(body(**fields))).greedy


def test_a_prompt_above_the_context_is_refused_with_the_numbers():
    with pytest.raises(ApiError) as caught:
        sampling(ChatRequest.model_validate(body()), prompt_tokens=100)
    error = caught.value
    assert (error.status, error.code, error.param) == (400, "context_length_exceeded", "messages")
    assert error.message.count("100") == 2


def test_prompt_and_limit_above_the_context_are_refused():
    request = ChatRequest.model_validate(body(max_tokens=91))
    with pytest.raises(ApiError, match="10 and 91"):
        sampling(request)
    assert sampling(request, prompt_tokens=9).max_tokens == 91


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (EngineOverloadedError("x"), 429, "rate_limit_error"),
        (EngineUnavailableError("x"), 503, "server_error"),
        (RequestRefusedError("x"), 400, "invalid_request_error"),
        (EngineError("x"), 500, "server_error"),
        (KeyError("secret"), 500, "server_error"),
    ],
)
def test_errors_map_to_one_status_each(error, status, kind):
    mapped = to_api_error(error)
    assert mapped.status == status
    assert mapped.body()["error"]["type"] == kind
    assert "secret" not in str(mapped.body())
    assert ("Retry-After" in mapped.headers) == (status in (429, 503))
