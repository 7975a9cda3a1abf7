"""/v1/responses against OpenAI's own types, and the chat request that asks for the same."""

import json

import pytest
from openai.types.responses import Response as OpenAIResponse
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from ochat_ray.serve.engines.base import EngineError
from ochat_ray.serve.protocol.tools import Call, calls_text
from tests.serve.asking import ASK, ask, error_of
from tests.serve.script import Script, app_for

BODY = {"model": "tiny", "input": "hi"}
TOOL = {
    "type": "function",
    "name": "add",
    "description": None,
    "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]},
    "strict": True,
}
CALLS = [Call(name="add", arguments='{"x": 1}'), Call(name="add", arguments='{"x": 22}')]
TEXT = calls_text("Let me see.", CALLS)
EVENT = TypeAdapter(ResponseStreamEvent)


def respond(app, **fields):
    return ask(app, path="/v1/responses", json=BODY | fields)


def served(tokenizer, text="Hello 🙂 there", **settings):
    return app_for(tokenizer, Script(tokenizer, text), context_length=2000, **settings)


def shown(response):
    """The output items without what differs from one response to the next."""
    items = [item.model_dump(exclude={"id", "call_id"}) for item in response.output]
    return [{name: value for name, value in item.items() if value is not None} for item in items]


def test_a_response_is_what_the_official_client_expects(tokenizer):
    body = respond(served(tokenizer), metadata={"a": "b"}, instructions="Be brief.").json()
    response = OpenAIResponse.model_validate(body)
    assert response.output_text == "Hello 🙂 there"
    assert (response.status, response.error) == ("completed", None)
    assert (response.metadata, response.instructions) == ({"a": "b"}, "Be brief.")
    usage = response.usage
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert body["store"] is False


def test_the_prompt_is_that_of_the_chat_request(tokenizer):
    chat, plain, items = (Script(tokenizer) for _ in range(3))
    messages = [{"role": "system", "content": "Be brief."}, *ASK["messages"]]
    ask(app_for(tokenizer, chat), json=ASK | {"messages": messages})
    respond(app_for(tokenizer, plain), instructions="Be brief.")
    parts = [{"type": "input_text", "text": "h"}, {"type": "input_text", "text": "i"}]
    given = [
        {"role": "developer", "content": "Be brief."},
        {"type": "message", "role": "user", "content": parts},
    ]
    respond(app_for(tokenizer, items), input=given)
    assert chat.seen[0][0] == plain.seen[0][0] == items.seen[0][0]


def test_an_answer_that_reaches_the_limit_is_incomplete(tokenizer):
    response = OpenAIResponse.model_validate(respond(served(tokenizer), max_output_tokens=3).json())
    assert response.status == "incomplete"
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.output[0].status == "incomplete"


def streamed(app, **fields):
    """The events of a stream, as the official client reads them, and its last line."""
    text = respond(app, stream=True, **fields).text
    events = []
    for block in text.strip().split("\n\n"):
        name, data = block.split("\n")
        body = json.loads(data.removeprefix("data: "))
        assert name == f"event: {body['type']}"
        events.append(EVENT.validate_python(body))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    return events


@pytest.mark.parametrize(
    ("text", "fields"), [("Hello 🙂 there", {}), (TEXT, {"tools": [TOOL]}), ("", {})]
)
def test_a_stream_builds_the_same_response(tokenizer, text, fields):
    whole = OpenAIResponse.model_validate(respond(served(tokenizer, text), **fields).json())
    events = streamed(served(tokenizer, text), **fields)
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    assert events[-1].type == "response.completed"
    assert shown(events[-1].response) == shown(whole)
    done = [event.item for event in events if event.type == "response.output_item.done"]
    assert done == events[-1].response.output
    deltas = [e.delta for e in events if e.type == "response.output_text.delta"]
    assert "".join(deltas) == whole.output_text
    for index, item in enumerate(whole.output):
        if item.type == "function_call":
            kind = "response.function_call_arguments.delta"
            parts = [e.delta for e in events if e.type == kind and e.output_index == index]
            assert "".join(parts) == item.arguments


def test_calls_are_output_items_and_go_back_with_their_results(tokenizer):
    script = Script(tokenizer)
    app = app_for(tokenizer, script, context_length=2000)
    first = respond(served(tokenizer, TEXT), tools=[TOOL]).json()
    assert [item["type"] for item in first["output"]] == [
        "message",
        "function_call",
        "function_call",
    ]
    results = [
        {"type": "function_call_output", "call_id": item["call_id"], "output": item["arguments"]}
        for item in first["output"][1:]
    ]
    given = [{"role": "user", "content": "hi"}, *first["output"], *results]
    assert respond(app, input=given, tools=[TOOL]).status_code == 200
    prompt = tokenizer.decode(script.seen[0][0])
    assert TEXT in prompt
    assert '<tool_response>\n{"x": 22}\n</tool_response>' in prompt
    error = error_of(respond(app, input=given[:-1], tools=[TOOL]), 400)
    assert error["param"] == "input"


def test_the_engine_gets_the_format_and_the_choice(tokenizer):
    script = Script(tokenizer)
    app = app_for(tokenizer, script, context_length=2000)
    schema = {"type": "json_schema", "name": "n", "schema": {"enum": [1]}, "strict": True}
    assert respond(app, text={"format": schema}).json()["text"]["format"]["schema"] == {"enum": [1]}
    assert script.seen[-1][1].json_schema == '{"enum":[1]}'
    respond(app, tools=[TOOL], tool_choice={"type": "function", "name": "add"})
    assert script.seen[-1][1].calls.required
    named = [{"type": "function", "name": "add"}]
    choice = {"type": "allowed_tools", "mode": "auto", "tools": named}
    assert respond(app, tools=[TOOL], tool_choice=choice).json()["tool_choice"] == choice
    assert not script.seen[-1][1].calls.required


def test_sampling_fields_of_vllm_are_those_of_a_chat(tokenizer):
    script = Script(tokenizer)
    fields = {
        "seed": 5, "ignore_eos": True, "top_k": 3, "min_p": 0.1, "presence_penalty": 0.5,
        "frequency_penalty": 0.5, "repetition_penalty": 1.2, "stop": ["lo"],
    }  # fmt: skip
    body = respond(app_for(tokenizer, script), **fields, max_output_tokens=9).json()
    assert OpenAIResponse.model_validate(body).output_text == "Hel"
    ask(app_for(tokenizer, script), json=ASK | fields | {"max_tokens": 9})
    assert script.seen[0][1] == script.seen[1][1]


def test_a_broken_stream_ends_with_an_error_event(tokenizer):
    script = Script(tokenizer, error=EngineError("broken"), fail_after=2)
    *_, last = streamed(app_for(tokenizer, script))
    assert (last.type, last.message) == ("error", "broken")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"store": True}, "store"),
        ({"background": True}, "background"),
        ({"reasoning": {"effort": "high"}}, "reasoning"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "name": "g"}, "tools": [TOOL]}, "tool_choice"),
        ({"tool_choice": {"type": "file_search"}, "tools": [TOOL]}, "tool_choice"),
        ({"input": []}, "input"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input.0"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input.0.item_reference"),
        ({"include": ["message.output_text.logprobs"]}, "include"),
        ({"reasoning": {"effort": None, "summary": "auto"}}, "reasoning"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, None),
        ({"input": "0" * 500}, "input"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"stop": [""]}, "stop"),
        ({"n": 2}, "n"),
        ({"model": "other"}, "model"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(tokenizer, fields, param):
    response = respond(app_for(tokenizer, Script(tokenizer)), **fields)
    error = error_of(response, 404 if "model" in fields else 400)
    assert param is None or error["param"] == param


def test_what_asks_for_nothing_is_accepted(tokenizer):
    fields = {
        "store": False, "include": [], "truncation": "disabled", "reasoning": {},
        "parallel_tool_calls": True, "tool_choice": "auto", "previous_response_id": None,
        "text": {"format": {"type": "text"}}, "service_tier": "auto", "user": "u",
        "max_tool_calls": 3, "context_management": [], "prompt_cache_options": {},
        "stream_options": {"include_obfuscation": None},
    }  # fmt: skip
    assert respond(served(tokenizer), **fields).status_code == 200
    fields = {
        "include": ["reasoning.encrypted_content"],
        "reasoning": {"effort": None, "summary": None},
    }
    assert respond(served(tokenizer), **fields).status_code == 200
