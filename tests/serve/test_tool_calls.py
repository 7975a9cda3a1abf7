"""Tool calls through the routes: a scripted answer, and what clients of OpenAI's API receive."""

import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionMessage

from ochat_ray.serve.protocol.tools import Call, calls_text
from tests.serve.asking import ASK, ask, chunks, error_of
from tests.serve.script import Script, app_for

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Add one.",
            "parameters": {"properties": {"x": {"type": "integer"}}, "required": ["x"]},
            "strict": True,
        },
    },
    {"type": "function", "function": {"name": "now"}, "cache_control": {"type": "ephemeral"}},
]


def allowed(mode, *names):
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


CALLS = [Call(name="add", arguments='{"x": 1}'), Call(name="now", arguments="{}")]
BODY = ASK | {"tools": TOOLS}


def served(tokenizer, text, **settings):
    return app_for(tokenizer, Script(tokenizer, text), context_length=2000, **settings)


@pytest.mark.parametrize("content", ["", "Let me see."])
def test_calls_are_message_parts_and_not_text(tokenizer, content):
    app = served(tokenizer, calls_text(content, CALLS))
    completion = ChatCompletion.model_validate(ask(app, json=BODY).json(), strict=True)
    (choice,) = completion.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == (content or None)
    called = [(call.function.name, call.function.arguments) for call in choice.message.tool_calls]
    assert called == [(call.name, call.arguments) for call in CALLS]
    assert len({call.id for call in choice.message.tool_calls}) == 2


def test_a_stream_has_the_same_calls_in_parts(tokenizer):
    app = served(tokenizer, calls_text("Let me see.", CALLS))
    state, arguments = ChatCompletionStreamState(), 0
    for chunk in chunks(ask(app, json=BODY | {"stream": True})):
        parsed = ChatCompletionChunk.model_validate(chunk)
        state.handle_chunk(parsed)
        arguments += any(
            call.function.arguments for call in parsed.choices[0].delta.tool_calls or ()
        )
    (choice,) = state.get_final_completion().choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me see."
    called = [(call.function.name, call.function.arguments) for call in choice.message.tool_calls]
    assert called == [(call.name, call.arguments) for call in CALLS]
    assert arguments > 3  # the arguments arrive as they are generated


def test_an_answer_without_a_call_is_plain(tokenizer):
    completion = ask(served(tokenizer, "It is noon."), json=BODY).json()
    (choice,) = completion["choices"]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("stop", "It is noon.")
    assert "tool_calls" not in choice["message"]


def test_a_call_that_is_cut_off_says_so(tokenizer):
    body = BODY | {"max_tokens": 44}
    (choice,) = ask(served(tokenizer, calls_text("", CALLS[:1])), json=body).json()["choices"]
    assert choice["finish_reason"] == "length"
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["name"] == "add"
    assert CALLS[0].arguments.startswith(call["function"]["arguments"])


@pytest.mark.parametrize(
    ("fields", "names", "required", "parallel"),
    [
        ({}, ["add", "now"], False, True),
        ({"tool_choice": "auto", "parallel_tool_calls": False}, ["add", "now"], False, False),
        ({"tool_choice": "required"}, ["add", "now"], True, True),
        ({"tool_choice": {"type": "function", "function": {"name": "now"}}}, ["now"], True, False),
        ({"tool_choice": allowed("auto", "now")}, ["now"], False, True),
        ({"tool_choice": allowed("required", "now", "add")}, ["add", "now"], True, True),
    ],
)
def test_the_engine_gets_the_rules_of_the_choice(tokenizer, fields, names, required, parallel):
    script = Script(tokenizer)
    ask(app_for(tokenizer, script, context_length=2000), json=BODY | fields)
    rules = script.seen[0][1].calls
    assert [tool.name for tool in rules.tools] == names
    assert (rules.required, rules.parallel) == (required, parallel)
    described = tokenizer.decode(script.seen[0][0])
    assert '"name": "add"' in described  # all tools, whichever may be called
    assert '"name": "now"' in described


@pytest.mark.parametrize("text", ['{"a": "<tool_call> 🙂"}', calls_text("", CALLS)])
def test_with_a_response_format_an_answer_is_json_or_calls(tokenizer, text):
    script = Script(tokenizer, text)
    app = app_for(tokenizer, script, context_length=2000)
    body = BODY | {"response_format": {"type": "json_object"}}
    (choice,) = ask(app, json=body).json()["choices"]
    assert script.seen[0][1].calls.answer == '{"type":"object"}'
    state = ChatCompletionStreamState()
    for chunk in chunks(ask(app, json=body | {"stream": True})):
        state.handle_chunk(ChatCompletionChunk.model_validate(chunk))
    (streamed,) = state.get_final_completion().choices
    for message, reason in (
        (ChatCompletionMessage.model_validate(choice["message"]), choice["finish_reason"]),
        (streamed.message, streamed.finish_reason),
    ):
        if text.startswith("{"):
            assert (message.content, message.tool_calls, reason) == (text, None, "stop")
        else:
            called = [(call.function.name, call.function.arguments) for call in message.tool_calls]
            assert called == [(call.name, call.arguments) for call in CALLS]
            assert (message.content or None, reason) == (None, "tool_calls")


def test_tools_that_must_not_be_called_are_not_shown(tokenizer):
    plain, none = Script(tokenizer), Script(tokenizer)
    ask(app_for(tokenizer, plain), json=ASK)
    ask(app_for(tokenizer, none), json=BODY | {"tool_choice": "none"})
    assert plain.seen[0][0] == none.seen[0][0]
    assert none.seen[0][1].calls is None


def test_a_client_sends_the_calls_back_with_their_results(tokenizer):
    script = Script(tokenizer)
    app = app_for(tokenizer, script, context_length=2000)
    first = ask(served(tokenizer, calls_text("", CALLS)), json=BODY).json()
    message = first["choices"][0]["message"]
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": str(number)}
        for number, call in enumerate(message["tool_calls"])
    ]
    for index, call in enumerate(message["tool_calls"]):
        call["index"] = index  # as in the deltas of a stream
    body = BODY | {"messages": [*ASK["messages"], message, *results]}
    assert ask(app, json=body).status_code == 200
    assert "<tool_response>\n1\n</tool_response>" in tokenizer.decode(script.seen[0][0])
    unanswered = BODY | {"messages": [*ASK["messages"], message, *results[:1]]}
    assert error_of(ask(app, json=unanswered), 400)["param"] == "messages"
    shown = ask(app, path="/tokenize", json={"messages": body["messages"], "tools": TOOLS}).json()
    assert shown["tokens"] == script.seen[0][0]


def test_an_engine_that_cannot_call_tools_says_so(tokenizer):
    error = error_of(ask(app_for(tokenizer, Script(tokenizer), engine="scripted"), json=BODY), 400)
    assert (error["param"], error["code"]) == ("tools", "unsupported_parameter")
    assert "transformers and vllm can" in error["message"]
