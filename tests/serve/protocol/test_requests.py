from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from ochat_ray.schema import Turn
from ochat_ray.serve.checks import check_logprobs, check_supported
from ochat_ray.serve.engines.base import (
    EngineError,
    EngineOverloadedError,
    EngineUnavailableError,
    RequestRefusedError,
    Sampling,
)
from ochat_ray.serve.protocol.errors import ApiError, to_api_error, validation_error
from ochat_ray.serve.protocol.lenient import LenientChatRequest, ignored_fields
from ochat_ray.serve.protocol.requests import ChatRequest, CompletionRequest
from ochat_ray.serve.protocol.tokenize_request import TokenizeRequest

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}

BILLION = {"type": "array", "minItems": 10**9}


def body(**fields):
    return {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}


def refusal(**fields):
    with pytest.raises(ValidationError) as caught:
        ChatRequest.model_validate(body(**fields))
    return validation_error(caught.value.errors())


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
        ({"tools": [TOOL, TOOL]}, "tools"),
        ({"tools": [TOOL], "logprobs": True}, "logprobs"),
        ({"tools": [TOOL], "guided_choice": ["a"]}, "guided_choice"),
        ({"tools": [TOOL], "ignore_eos": True}, "ignore_eos"),
        ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice.function"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "allowed_tools": {}}},
            "tool_choice.allowed_tools.mode",
        ),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}},
            "tool_choice",
        ),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"nonsense": 0}, "nonsense"),
        ({"store": True}, "store"),
        ({"store": 0}, "store"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"min_tokens": 2, "response_format": {"type": "json_object"}}, "min_tokens"),
        ({"bad_words": ["a"], "guided_regex": "a"}, "bad_words"),
        ({"bad_words": [""]}, "bad_words.0"),
        ({"bad_words": ["a"] * 65}, "bad_words"),
        ({"stop_token_ids": [-1]}, "stop_token_ids.0"),
        ({"stop_token_ids": [1] * 129}, "stop_token_ids"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"prompt_logprobs": 0, "stream": True}, "prompt_logprobs"),
        ({"echo": True}, "echo"),
        ({"chat_template_kwargs": "enable_thinking"}, "chat_template_kwargs"),
        ({"continue_final_message": True}, "continue_final_message"),
        (
            {
                "messages": [{"role": "assistant", "content": "a"}],
                "continue_final_message": True,
                "add_generation_prompt": True,
            },
            "continue_final_message",
        ),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
        ({"structured_outputs": {"structural_tag": "a"}}, "structured_outputs.structural_tag"),
        ({"structured_outputs": {"json": BILLION}}, "structured_outputs.json"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
        ({"structured_outputs": {"json": {"minItems": 10**400}}}, "structured_outputs.json"),
        ({"structured_outputs": {"json": "[]"}}, "structured_outputs.json"),
        ({"structured_outputs": {"regex": "a{1000000}"}}, "structured_outputs.regex"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"structured_outputs": {"choice": [""]}}, "structured_outputs.choice.0"),
        ({"structured_outputs": {"grammar": "a" * 20_000}}, "structured_outputs.grammar"),
        ({"guided_regex": "a", "structured_outputs": {"regex": "a"}}, "guided_regex"),
        ({"guided_choice": ["a"] * 1025}, "guided_choice"),
        ({"guided_regex": "a", "ignore_eos": True}, "ignore_eos"),
        ({"guided_decoding_backend": "outlines"}, "guided_decoding_backend"),
        ({"logit_bias": {"9" * 5000: 1}}, "logit_bias"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"logprobs": 1}, "logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"frequency_penalty": 2.5}, "frequency_penalty"),
        ({"presence_penalty": -2.5}, "presence_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"repetition_penalty": 1e-40}, "repetition_penalty"),
        ({"ignore_eos": True, "response_format": {"type": "json_object"}}, "ignore_eos"),
        ({"min_p": 1.5}, "min_p"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
        ),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": BILLION},
                }
            },
            "response_format.json_schema.schema",
        ),
        ({"conversation": []}, "conversation"),
        ({"max_tokens": 5, "max_generated_tokens": 5}, "max_generated_tokens"),
        ({"temperature": float("nan")}, "temperature"),
        ({"user": "\ud800"}, "user"),
        ({"messages": [{"role": "user", "content": "\udfff"}]}, "messages.0.content"),
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": "0.5"}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"seed": 2**63}, "seed"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
        ({"stop": ["a"] * 33}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", ""]}, "stop"),
        ({"stop": [5]}, "stop.0"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.tool_call_id"),
        ({"messages": [{"role": "function", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "x", "name": 5}]}, "messages.0.name"),
        ({"messages": [{"role": "assistant", "tool_calls": [1]}]}, "messages.0.tool_calls.0"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(fields, param):
    error = refusal(**fields)
    assert (error.status, error.param) == (400, param)
    assert param.split(".")[-1] in error.message or param in error.message


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": []},
        {"tools": None, "tool_choice": None},
        {"tools": [TOOL], "tool_choice": "none"},
        {"tool_choice": "auto", "parallel_tool_calls": False},
        {"functions": [], "function_call": "none"},
        {"store": False, "metadata": {"a": "b"}, "service_tier": "auto"},
        {"reasoning_effort": "none", "verbosity": "medium", "modalities": ["text"]},
        {"safety_identifier": "u1", "prompt_cache_key": "k"},
        {"prediction": None, "nonsense": None},
        {"stop_token_ids": [], "min_tokens": 0, "skip_special_tokens": True},
        {"add_generation_prompt": True, "continue_final_message": False},
        {"chat_template_kwargs": {}, "extra_body": {}},
        {"best_of": 1, "suffix": "", "echo": False},
        {"stream": True, "stream_options": {"include_obfuscation": False}},
        {"stream_options": {"include_usage": False, "continuous_usage_stats": None}},
        {"structured_outputs": {}, "prompt_cache_options": {"mode": "implicit"}},
        {"structured_outputs": {"json": None, "json_object": False}},
        {"messages": [{"role": "user", "content": "hi", "name": None, "cache_control": {}}]},
        {"messages": [{"role": "user", "content": "hi", "annotations": [], "tool_calls": []}]},
        {"messages": [{"role": "user", "content": "hi", "parsed": {"a": 1}, "refusal": None}]},
    ],
)
def test_a_value_that_asks_for_nothing_changes_nothing(fields):
    plain = ChatRequest.model_validate(body(stream=fields.get("stream")))
    request = ChatRequest.model_validate(body(**fields))
    assert sampling(request) == sampling(plain)
    assert request.turns == plain.turns
    assert ignored_fields(request) == []


def test_a_name_of_a_message_is_accepted_and_reported_as_ignored():
    message = {"role": "user", "content": "hi", "name": "bob"}
    request = ChatRequest.model_validate(body(messages=[message]))
    assert ignored_fields(request) == ["messages.name"]


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [1] * 20_000},
        {"messages": [{"role": "user", "content": [1] * 20_000}]},
        {"messages": [{str(n): n for n in range(20_000)}]},
        {"stop": [1] * 20_000},
        {str(n): n for n in range(20_000)},
        {"logit_bias": {str(n): "x" for n in range(20_000)}},
    ],
)
def test_an_invalid_body_has_few_errors(fields):
    with pytest.raises(ValidationError) as caught:
        ChatRequest.model_validate(body(**fields))
    assert caught.value.error_count() <= 1100


@pytest.mark.parametrize(
    "prompt", [[1.5] * 20_000, [[1.5] * 20_000], ["a"] * 20_000, [["a"]] * 20_000]
)
def test_an_invalid_prompt_has_few_errors(prompt):
    with pytest.raises(ValidationError) as caught:
        CompletionRequest.model_validate({"model": "m", "prompt": prompt})
    assert caught.value.error_count() <= 300


def test_logprobs_are_bounded_over_all_answers():
    request = ChatRequest.model_validate(body(n=100, logprobs=True, top_logprobs=20))
    check_logprobs(request, [Sampling(max_tokens=95)])  # 199,500
    with pytest.raises(ApiError, match="201600 values") as caught:
        check_logprobs(request, [Sampling(max_tokens=96)])
    assert (caught.value.status, caught.value.param) == (400, "logprobs")


def test_an_image_part_is_refused():
    part = {"type": "image_url", "image_url": {"url": "x"}}
    error = refusal(messages=[{"role": "user", "content": [part]}])
    assert (error.status, error.param) == (400, "messages.0.content.0.image_url")
    assert "unsupported field" in error.message


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
    assert request.turns == [
        Turn(role="system", text="be brief"),
        Turn(role="user", text="ab"),
        Turn(role="assistant", text="c"),
    ]


def test_an_answer_can_be_sent_back_as_the_client_holds_it():
    from openai.types.chat import ChatCompletionMessage

    answer = ChatCompletionMessage(role="assistant", content="c").model_dump()
    request = ChatRequest.model_validate(body(messages=[answer]))
    assert request.turns == [Turn(role="assistant", text="c")]


def test_names_of_2023():
    old = {"model": "m", "conversation": [{"role": "user", "content": "hi"}], "condition": "GPT4"}
    request = ChatRequest.model_validate(old | {"max_generated_tokens": 5, "max_tokens": None})
    assert (request.messages[0].content, request.limit, request.condition) == ("hi", 5, "GPT4")


def test_every_rule_reaches_the_engine():
    request = ChatRequest.model_validate(
        body(
            temperature=0.5, top_p=0.9, top_k=3, min_p=0.1, repetition_penalty=1.2,
            presence_penalty=0.3, frequency_penalty=0.4, logit_bias={"7": -100}, seed=1,
            max_completion_tokens=5, logprobs=True, top_logprobs=2,
            response_format={"type": "json_object"},
        )
    )  # fmt: skip
    assert sampling(request) == Sampling(
        max_tokens=5, temperature=0.5, top_p=0.9, top_k=3, min_p=0.1, repetition_penalty=1.2,
        presence_penalty=0.3, frequency_penalty=0.4, logit_bias=((7, -100.0),), seed=1,
        top_logprobs=2, json_schema='{"type":"object"}', stop_ids=(7,),
    )  # fmt: skip


def test_a_schema_is_passed_on_as_it_is():
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    request = ChatRequest.model_validate(body(response_format=form))
    assert json.loads(sampling(request).json_schema) == schema
    assert sampling(ChatRequest.model_validate(body(response_format={"type": "text"}))) == (
        sampling(ChatRequest.model_validate(body()))
    )


@pytest.mark.parametrize(
    ("fields", "constraint"),
    [
        ({"structured_outputs": {"json": {"a": 1}}}, {"json_schema": '{"a":1}'}),
        ({"structured_outputs": {"json": '{"a": 1}'}}, {"json_schema": '{"a":1}'}),
        ({"guided_json": {"a": 1}}, {"json_schema": '{"a":1}'}),
        ({"structured_outputs": {"json_object": True}}, {"json_schema": '{"type":"object"}'}),
        ({"structured_outputs": {"regex": "a/b"}}, {"grammar": "start: /a\\/b/"}),
        ({"guided_regex": "a\nb"}, {"grammar": "start: /a\\nb/"}),
        ({"guided_choice": ["a", 'b"']}, {"grammar": 'start: "a" | "b\\""'}),
        ({"structured_outputs": {"grammar": 'start: "a"'}}, {"grammar": 'start: "a"'}),
        ({"guided_grammar": 'root ::= "a"'}, {"grammar": 'root ::= "a"'}),
        ({"structured_outputs": None, "response_format": {"type": "text"}}, {}),
    ],
)
def test_structured_outputs_reach_the_engine(fields, constraint):
    for kind, prompt in ((ChatRequest, {}), (CompletionRequest, {"prompt": "a"})):
        sent = body(**fields) | prompt
        if prompt:
            del sent["messages"]
        found = sampling(kind.model_validate(sent))
        assert (found.json_schema, found.grammar) == (
            constraint.get("json_schema"),
            constraint.get("grammar"),
        )


def test_fields_of_vllm_reach_the_engine():
    request = ChatRequest.model_validate(
        body(stop_token_ids=[3, 3, 9], min_tokens=4, prompt_logprobs=2, bad_words=["a"])
    )
    found = request.sampling(
        prompt_tokens=10, context_length=100, vocabulary=50, stop_ids=(7,), bad_words=[[1, 2]]
    )
    assert (found.stop_ids, found.min_tokens) == ((7, 3, 9), 4)
    assert (found.prompt_logprobs, found.bad_words) == (2, ((1, 2),))
    ignoring = ChatRequest.model_validate(body(stop_token_ids=[3], ignore_eos=True))
    assert sampling(ignoring).stop_ids == (3,)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stop_token_ids": [50]}, "stop_token_ids"),
        ({"min_tokens": 6, "max_tokens": 5}, "min_tokens"),
        ({"min_tokens": 91}, "min_tokens"),
    ],
)
def test_what_the_model_cannot_do_is_refused_by_name(fields, param):
    with pytest.raises(ApiError) as caught:
        sampling(ChatRequest.model_validate(body(**fields)))
    assert (caught.value.status, caught.value.param) == (400, param)


@pytest.mark.parametrize(("count", "kept"), [(None, 5), (2, 2), (9, 5), (-1, 3)])
def test_a_prompt_is_truncated_to_its_last_tokens(count, kept):
    request = ChatRequest.model_validate(body(truncate_prompt_tokens=count))
    assert request.truncated([1, 2, 3, 4, 5], 3) == [1, 2, 3, 4, 5][-kept:]


@pytest.mark.parametrize(
    ("fields", "engine", "param"),
    [
        ({"structured_outputs": {"regex": "a"}}, "vllm", "structured_outputs.regex"),
        ({"guided_choice": ["a"]}, "vllm", "guided_choice"),
        ({"structured_outputs": {"json": {}}}, "scripted", "structured_outputs.json"),
        ({"bad_words": ["a"]}, "scripted", "bad_words"),
    ],
)
def test_constraints_that_an_engine_cannot_do_are_refused(fields, engine, param):
    request = ChatRequest.model_validate(body(**fields))
    check_supported(request, "transformers")
    with pytest.raises(ApiError) as caught:
        check_supported(request, engine)
    assert caught.value.param == param


def test_a_bias_outside_the_vocabulary_is_refused():
    with pytest.raises(ApiError, match="below 50") as caught:
        sampling(ChatRequest.model_validate(body(logit_bias={"50": 1})))
    assert caught.value.param == "logit_bias"


def test_what_this_engine_cannot_do_is_refused_and_says_which_can():
    request = ChatRequest.model_validate(body(seed=5, min_p=None))
    check_supported(request, "transformers")
    with pytest.raises(ApiError, match="transformers and vllm can") as caught:
        check_supported(request, "scripted")
    assert (caught.value.status, caught.value.param) == (400, "seed")
    check_supported(ChatRequest.model_validate(body(seed=None)), "scripted")


def test_a_lenient_server_keeps_unknown_fields_apart_and_checks_the_rest():
    message = {"role": "user", "content": "hi", "weight": 1}
    request = LenientChatRequest.model_validate(
        body(store=True, nonsense=1, top_k=3, messages=[message])
    )
    assert ignored_fields(request) == ["messages.weight", "nonsense", "store"]
    assert request.top_k == 3
    for fields in ({"top_k": "3"}, {"tool_choice": "required"}, {"function_call": {"name": "x"}}):
        with pytest.raises(ValidationError):
            LenientChatRequest.model_validate(body(**fields))


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2]], [[1], [2]])],
)
def test_prompts_of_a_text_completion(prompt, prompts):
    request = CompletionRequest.model_validate({"model": "m", "prompt": prompt})
    assert request.prompts == prompts
    assert request.limit == 16


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"prompt": ["a", "b"], "n": 65}, "n"),
        ({"logprobs": 21}, "logprobs"),
    ],
)
def test_what_a_text_completion_cannot_do_is_refused_by_name(fields, param):
    with pytest.raises(ValidationError) as caught:
        CompletionRequest.model_validate({"model": "m", "prompt": "a"} | fields)
    assert validation_error(caught.value.errors()).param == param


@pytest.mark.parametrize("prompt", [[], [[]], [-1], [1.5], {}, None])
def test_a_prompt_that_is_none_is_refused(prompt):
    with pytest.raises(ValidationError) as caught:
        CompletionRequest.model_validate({"model": "m", "prompt": prompt})
    assert validation_error(caught.value.errors()).param.startswith("prompt")


def test_tokenize_takes_one_of_two():
    TokenizeRequest.model_validate({"prompt": "a"})
    for fields in ({}, {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}):
        with pytest.raises(ValidationError):
            TokenizeRequest.model_validate(fields)


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


@pytest.mark.parametrize(
    "fields",
    [{"temperature": 0}, {"temperature": 1e-40}, {"top_k": 1}, {"top_p": 0}, {"top_p": 1e-50}],
)
def test_three_ways_to_be_greedy(fields):
    assert sampling(ChatRequest.model_validate(body(**fields))).greedy


def test_a_prompt_above_the_context_is_refused_with_the_numbers():
    with pytest.raises(ApiError) as caught:
        sampling(ChatRequest.model_validate(body()), prompt_tokens=100)
    error = caught.value
    assert (error.status, error.code, error.param) == (400, "context_length_exceeded", "messages")
    assert error.message.count("100") == 2
    assert "context_length_exceeded" in error.message


def test_prompt_and_limit_above_the_context_are_refused():
    request = ChatRequest.model_validate(body(max_tokens=91))
    with pytest.raises(ApiError, match="10 in the messages, 91 in the completion"):
        sampling(request)
    assert sampling(request, prompt_tokens=9).max_tokens == 91


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (EngineOverloadedError("x"), 429, "rate_limit_error"),
        (EngineUnavailableError("x"), 503, "server_error"),
        (RequestRefusedError("x"), 400, "invalid_request_error"),
        (EngineError("x"), 500, "server_error"),
        (TimeoutError(), 503, "server_error"),
        (KeyError("secret"), 500, "server_error"),
    ],
)
def test_errors_map_to_one_status_each(error, status, kind):
    mapped = to_api_error(error)
    assert mapped.status == status
    assert mapped.body()["error"]["type"] == kind
    assert "secret" not in str(mapped.body())
    assert ("Retry-After" in mapped.headers) == (status in (429, 503))
