"""Requests to a model with its own chat template, in this process: ids are transformers' own."""

import json

import pytest
from transformers import PreTrainedTokenizerFast

from ochat_ray.errors import UserError
from ochat_ray.serve.model_files import check_model_directory
from ochat_ray.tokenization.chat_tokenizer import load_chat_tokenizer
from tests.conftest import byte_level_tokenizer
from tests.serve.asking import ASK, ask, error_of
from tests.serve.script import Script, app_for

SOURCE = (
    "{% if tools %}tools: {{ tools | tojson }}\n{% endif %}"
    "{% for m in messages %}{% if m.role == 'system' and loop.index > 1 %}"
    "{{ raise_exception('system comes first') }}{% endif %}{{ m.role }}: "
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n'
    "</tool_call>{% endfor %}<|end_of_turn|>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% if enable_thinking is false %}<no>{% endif %}"
    "{% endif %}"
)
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
SYSTEM, USER = {"role": "system", "content": "S"}, {"role": "user", "content": "hi  there\n"}
CALLING = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"id": "c", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    ],
}
RESULT = {"role": "tool", "tool_call_id": "c", "content": "1"}


def opened(directory, source=SOURCE):
    PreTrainedTokenizerFast(
        tokenizer_object=byte_level_tokenizer(), bos_token="<s>", chat_template=source
    ).save_pretrained(directory)
    return load_chat_tokenizer(str(directory))


@pytest.fixture(scope="module")
def chat_tokenizer(tmp_path_factory):
    return opened(tmp_path_factory.mktemp("own"))


@pytest.fixture(scope="module")
def app(chat_tokenizer):
    return app_for(chat_tokenizer, Script(chat_tokenizer), model_type="chat")


def ids(app, **fields):
    return ask(app, path="/tokenize", json=fields).json()["tokens"]


def expected(tokenizer, messages, **options):
    written = json.loads(json.dumps(messages))
    for message in written:
        message["content"] = message["content"] or ""
        for call in message.get("tool_calls", ()):
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return tokenizer.apply_chat_template(
        written, add_generation_prompt=True, return_dict=False, **options
    )


@pytest.mark.parametrize(
    "messages",
    [
        [USER],
        [SYSTEM, USER],
        [USER, {"role": "assistant", "content": "a", "reasoning_content": "r"}, USER],
        [USER, CALLING, RESULT],
    ],
)
def test_a_prompt_has_the_ids_of_apply_chat_template(app, chat_tokenizer, messages):
    assert ids(app, messages=messages) == expected(chat_tokenizer, messages)
    with_tools = expected(chat_tokenizer, messages, tools=TOOLS)
    assert ids(app, messages=messages, tools=TOOLS) == with_tools


def test_tools_have_the_ids_of_the_clients_order_of_fields(app, chat_tokenizer):
    """Training writes a record's tools in the record's order."""
    function = {"parameters": {"type": "object"}, "description": "d", "name": "add"}
    tools = [{"function": function, "type": "function"}]
    with_tools = expected(chat_tokenizer, [USER], tools=tools)
    assert ids(app, messages=[USER], tools=tools) == with_tools
    cached = [{"cache_control": {"type": "ephemeral"}} | tools[0]]
    assert ids(app, messages=[USER], tools=cached) == with_tools


def test_variables_of_the_template_are_the_requests(app, chat_tokenizer):
    fields = {"messages": [USER], "chat_template_kwargs": {"enable_thinking": False}}
    assert ids(app, **fields) == expected(chat_tokenizer, [USER], enable_thinking=False)
    body = ASK | {"chat_template_kwargs": {"enable_thoughts": False}}
    assert "enable_thoughts" in error_of(ask(app, json=body), 400)["message"]
    body = ASK | {"chat_template_kwargs": {"messages": []}}
    assert "cannot be set" in error_of(ask(app, json=body), 400)["message"]


def test_a_refusal_is_a_400_with_the_templates_own_words(app):
    error = error_of(ask(app, json=ASK | {"messages": [USER, SYSTEM]}), 400)
    assert error["param"] == "messages"
    assert error["message"].endswith("system comes first")


def test_an_answer_ends_at_the_end_of_the_template(app):
    answer = ask(app, json=ASK).json()["choices"][0]
    assert answer["finish_reason"] == "stop"
    assert answer["message"]["content"] == "Hello 🙂 there"


def test_a_condition_and_calls_of_another_syntax_are_rejected_by_name(app, tmp_path):
    error = error_of(ask(app, json=ASK | {"condition": "GPT4"}), 400)
    assert error["param"] == "condition"
    other = opened(tmp_path, SOURCE.replace("<tool_call>", "[CALL]"))
    body = ASK | {"tools": TOOLS}
    error = error_of(ask(app_for(other, Script(other), model_type="chat"), json=body), 400)
    assert error["param"] == "tools"


def test_reasoning_needs_a_template_that_writes_it(tokenizer):
    messages = [USER, {"role": "assistant", "content": "a", "reasoning_content": "r"}, USER]
    app = app_for(tokenizer, Script(tokenizer))
    error = error_of(ask(app, json=ASK | {"messages": messages}), 400)
    assert "reasoning_content" in error["message"]


def test_adapters_are_not_a_model_and_the_line_has_their_command(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=rf"model=BASE adapters={tmp_path.parent}, or train with"):
        check_model_directory(tmp_path)
