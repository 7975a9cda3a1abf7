"""Samples of conversations with a model's own chat template, against transformers' own ids."""

import copy
import json
from datetime import date

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ochat_ray.errors import UserError
from ochat_ray.schema import ToolCall, Turn
from ochat_ray.tokenization import supervision
from ochat_ray.tokenization.chat_template import MARKS, ChatTemplate, TemplateError
from ochat_ray.tokenization.chat_tokenizer import (
    TemplateSettings,
    ends_of_turn,
    load_chat_tokenizer,
)
from ochat_ray.tokenization.messages import Chat, messages_of
from ochat_ray.tokenization.supervision import left_out, supervise
from ochat_ray.tokenization.tokenizer import end_of_turn_id
from ochat_ray.tokenization.tokenizer import ends_of_turn as ends_of_turn_ids

SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
ORDINARY = ("<think>", "</think>", "<tool_call>", "</tool_call>", "  ")

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN_LIKE = (
    "{%- if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}{% endfor %}"
    "<|im_end|>\n{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content and loop.last %}<think>\n{{ m.reasoning_content }}\n</think>\n\n"
    "{% endif %}{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n'
    "</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BARE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[Q]{{ m.content }}[/Q]"
    "{% else %}{{ m.content | trim }}</s>{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def backend():
    """A byte-level vocabulary with special tokens, and added tokens that are ordinary ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ċ", "Ċ"), ("h", "i"), ("Ġ", "a"), ("<", "|")]
    vocabulary = {token: n for n, token in enumerate([*alphabet, *("".join(m) for m in merges)])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.add_tokens(list(ORDINARY))
    return tokenizer


@pytest.fixture
def opened(backend):
    """Open the vocabulary with a template; the ids by transformers come from `plain`."""

    def tokenizer(source, **settings):
        plain = PreTrainedTokenizerFast(
            tokenizer_object=backend, bos_token="<s>", eos_token="</s>", chat_template=source
        )
        return plain, ChatTemplate(plain, **settings)

    return tokenizer


def chat(*texts, tools=""):
    roles = ("user", "assistant")
    return Chat([Turn(role=roles[n % 2], text=text) for n, text in enumerate(texts)], tools)


def messages(turns):
    return [{"role": turn.role, "content": turn.text} for turn in turns]


def learnt(template, sample):
    """The texts of the supervised runs."""
    runs, last = [], 0.0
    for id, weight in zip(sample.ids, sample.weights, strict=True):
        if weight:
            runs = [*runs[:-1], [*runs[-1], id]] if last else [*runs, [id]]
        last = weight
    return [template.decode(run) for run in runs]


@pytest.mark.parametrize("source", [CHATML, QWEN_LIKE, BARE])
def test_ids_are_those_of_apply_chat_template(opened, source):
    plain, template = opened(source)
    turns = chat("hi  there\n\n", "é 你好", "a", "\n\n b").turns
    for generate in (False, True):
        expected = plain.apply_chat_template(
            messages(turns), add_generation_prompt=generate, return_dict=False
        )
        assert template.ids(Chat(turns), add_generation_prompt=generate) == expected


@pytest.mark.parametrize("name", [*SPECIAL, "<think>", "<tool_call>"])
def test_a_typed_name_of_a_token_stays_text(opened, name):
    _, template = opened(QWEN_LIKE)
    for text in (name, f"a {name} b", name + name, f"<|{name}", name[:-1] + name):
        ids = template.ids(chat(text, "x"))
        assert text in template.decode(ids)
        assert sum(map(ids.count, template.control_ids)) == 4  # the template's own


def test_the_names_of_ordinary_tokens_stay_tokens(opened):
    plain, template = opened(CHATML)
    spaces = plain.convert_tokens_to_ids("  ")
    assert spaces in template.ids(chat("a  b", "x"))


def test_noncharacters_are_text_as_long_as_one_is_left(opened):
    _, template = opened(CHATML)
    text = "".join(MARKS[:-1]) + "<|im_end|>"
    assert text in template.decode(template.ids(chat(text, "x")))
    with pytest.raises(TemplateError, match="noncharacters"):
        template.render(chat("".join(MARKS), "x"))


TEXTS = st.lists(
    st.sampled_from([*SPECIAL, *ORDINARY, "\n", " ", "a", "<|", "im_end", "|>", MARKS[0]])
    | st.text(max_size=3),
    min_size=1,
    max_size=6,
).map("".join)


@settings(max_examples=150, deadline=None)
@given(st.lists(TEXTS, min_size=2, max_size=6))
def test_each_answer_is_learnt_after_the_ids_that_a_server_gives_the_model(backend, texts):
    if len(texts) % 2:
        texts = texts[:-1]
    for source in (CHATML, QWEN_LIKE):
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend, bos_token="<s>", eos_token="</s>", chat_template=source
        )
        template = ChatTemplate(tokenizer)
        whole = chat(*texts)
        (found,) = supervise([whole], template)
        seen = []
        for sample in found.samples:
            answers = iter(sample.answers)
            for n, weight in enumerate(sample.weights):
                if weight and not sample.weights[n - 1]:
                    turn = next(answers)
                    before = Chat(whole.turns[:turn])
                    assert sample.ids[:n] == template.ids(before, add_generation_prompt=True)
                    seen.append(turn)
        assert seen == list(range(1, len(texts), 2))


def test_an_answer_is_learnt_up_to_its_end_and_the_rest_is_read(opened):
    _, template = opened(CHATML)
    (found,) = supervise([chat("hi", "yes", "a", "no")], template)
    (sample,) = found.samples
    assert learnt(template, sample) == ["yes<|im_end|>", "no<|im_end|>"]
    assert sample.ids == template.ids(chat("hi", "yes", "a", "no"))
    assert not found.notes


def test_a_turns_weight_is_its_tokens_weight(opened):
    _, template = opened(CHATML)
    turns = [
        Turn(role="user", text="a"),
        Turn(role="assistant", text="b", weight=0.0),
        Turn(role="user", text="c"),
        Turn(role="assistant", text="d", weight=0.5),
    ]
    (found,) = supervise([Chat(turns)], template)
    (sample,) = found.samples
    assert set(sample.weights) == {0.0, 0.5}
    assert learnt(template, sample) == ["d<|im_end|>"]


def test_a_template_that_rewrites_earlier_turns_makes_a_sample_of_each_answer(opened):
    _, template = opened(QWEN_LIKE)
    turns = [
        Turn(role="user", text="a"),
        Turn(role="assistant", text="b", reasoning="because"),
        Turn(role="user", text="c"),
        Turn(role="assistant", text="<think>\nwell\n</think>\n\nd"),
    ]
    (found,) = supervise([Chat(turns)], template)
    assert [learnt(template, sample) for sample in found.samples] == [
        ["<think>\nbecause\n</think>\n\nb<|im_end|>"],
        ["<think>\nwell\n</think>\n\nd<|im_end|>"],
    ]
    assert "because" not in template.decode(found.samples[1].ids)
    assert found.notes == {"separate_sample": 1}
    (last,) = supervise([Chat(turns)], template, last_only=True)
    assert last.samples == found.samples[1:]
    assert last.notes["earlier_answer_left_out"] == 1


def test_a_token_across_prompt_and_answer_is_divided_and_counted(opened):
    _, template = opened(CHATML)
    (found,) = supervise([chat("a", "\nb")], template)
    (sample,) = found.samples
    prompt = template.ids(chat("a"), add_generation_prompt=True)
    assert sample.ids[: len(prompt)] == prompt
    assert sample.ids != template.ids(chat("a", "\nb"))
    assert template.decode(sample.ids) == template.decode(template.ids(chat("a", "\nb")))
    assert found.notes == {"split_token": 1}


def test_generation_blocks_say_what_is_learnt(opened):
    _, template = opened(
        "{% for m in messages %}{% if m.role == 'user' %}<|im_start|>{{ m.content }}"
        "{% else %}<|im_end|>x{% generation %}{{ m.content }}</s>{% endgeneration %}y"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_end|>{% endif %}"
    )
    (found,) = supervise([chat("a", "b", "c", "d")], template)
    assert learnt(template, found.samples[0]) == ["b</s>", "d</s>"]


def test_calls_and_results_are_written_and_learnt(opened):
    _, template = opened(QWEN_LIKE)
    call = ToolCall(id="1", name="add", arguments='{"a": "<|im_end|>"}')
    turns = [
        Turn(role="user", text="sum"),
        Turn(role="assistant", text="", tool_calls=(call,)),
        Turn(role="tool", text="5", tool_call_id="1"),
        Turn(role="assistant", text="five"),
    ]
    tools = json.dumps([{"type": "function", "function": {"name": "add"}}])
    (found,) = supervise([Chat(turns, tools)], template)
    assert learnt(template, found.samples[0]) == [
        '<tool_call>\n{"name": "add", "arguments": {"a": "<|im_end|>"}}\n</tool_call><|im_end|>',
        "five<|im_end|>",
    ]
    assert template.writes_hermes_calls
    assert not found.notes


def test_what_a_template_does_not_write_is_counted(opened):
    _, template = opened(CHATML.replace("{{ m.content }}", "{{ m.content | upper }}"))
    call = ToolCall(id="1", name="add", arguments='{"number": 5}')
    turns = [
        Turn(role="user", text="sum"),
        Turn(role="assistant", text="5", reasoning="why", tool_calls=(call,)),
    ]
    tools = json.dumps([{"type": "function", "function": {"name": "add"}}])
    (found,) = supervise([Chat(turns, tools)], template)
    assert found.notes == {
        "text_left_out": 1,
        "call_left_out": 1,
        "tool_left_out": 1,
        "reasoning_left_out": 1,
    }
    assert not left_out(chat("a", "b"), "a b", MARKS[0])
    damaged = ToolCall(id="1", name="f", arguments='{"a": ')
    called = Chat([Turn(role="assistant", text="", tool_calls=(damaged,))])
    assert left_out(called, "f a", MARKS[0]) == {"call_as_text": 1}


def test_a_refusal_is_the_templates_own_line(opened):
    _, template = opened("{{ raise_exception('no system\nrole') }}")
    (found,) = supervise([chat("a", "b")], template)
    assert isinstance(found, TemplateError)
    assert str(found) == "no system role"


def test_variables_are_those_that_the_template_reads(opened):
    source = "{% if enable_thinking %}<think>{% endif %}" + CHATML
    _, template = opened(source, arguments={"enable_thinking": True})
    assert template.render(chat("a", "b")).text.startswith("<think>")
    for name in ("messages", "enable_thoughts", "strftime_now"):
        with pytest.raises(UserError, match=name):
            opened(source, arguments={name: 1})


def test_a_prompt_that_depends_on_reasoning_is_asked_as_the_answer_needs_it(opened):
    source = CHATML.replace(
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        "{% if add_generation_prompt %}<|im_start|>assistant\n"
        "{% if enable_thinking is not defined or enable_thinking %}<think>\n{% endif %}{% endif %}",
    )
    _, template = opened(source)
    (found,) = supervise([chat("a", "b")], template)
    assert learnt(template, found.samples[0]) == ["b<|im_end|>"]
    assert found.notes == {"thinking_off": 1}


def test_the_date_of_a_template_is_fixed(opened):
    _, template = opened("{{ strftime_now('%d %b %Y') }}" + CHATML, today=date(2024, 7, 26))
    assert template.render(chat("a")).text.startswith("26 Jul 2024")


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("{{ messages[0].content", "refuses a question with an answer"),
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", "no special token"),
        (CHATML.replace("assistant\n", "assistant\n<think>"), "after its own prompt"),
    ],
)
def test_a_template_that_no_answer_can_be_learnt_with_is_refused(opened, source, line):
    _, template = opened(source)
    with pytest.raises(UserError, match=line):
        ends_of_turn(template)


def test_a_loaded_tokenizer_ends_where_its_template_ends_an_answer(backend, tmp_path):
    PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", chat_template=CHATML
    ).save_pretrained(tmp_path)
    tokenizer = load_chat_tokenizer(str(tmp_path))
    assert tokenizer.eos_token == "<|im_end|>"
    other = load_chat_tokenizer(str(tmp_path), TemplateSettings(source=BARE))
    assert other.eos_token == "</s>"


def test_calls_and_results_without_ids_get_some_in_order(opened):
    _, template = opened(
        "{% for m in messages %}{% for c in m.tool_calls or [] %}({{ c.id }}){% endfor %}"
        "{% if m.role == 'tool' %}<{{ m.tool_call_id }} {{ m.name }}>{% endif %}{% endfor %}"
    )
    calls = tuple(ToolCall(id="", name=name, arguments="{}") for name in "fg")
    turns = [
        Turn(role="user", text="a"),
        Turn(role="assistant", text="", tool_calls=calls),
        Turn(role="tool", text="1"),
        Turn(role="tool", text="2"),
        Turn(role="assistant", text="", tool_calls=(ToolCall(id="x", name="h", arguments="{}"),)),
        Turn(role="tool", text="3", tool_call_id="x"),
    ]
    assert template.render(Chat(turns)).text == (
        "(call00000)(call00001)<call00000 f><call00001 g>(x)<x h>"
    )


def test_a_base_with_a_chat_template_that_is_not_used_ends_at_our_token(tokenizer):
    own = copy.deepcopy(tokenizer)
    own.chat_template, own.eos_token = CHATML, "<s>"
    assert end_of_turn_id(own) == end_of_turn_id(tokenizer)
    assert ends_of_turn_ids(own) == (end_of_turn_id(tokenizer),)


def test_a_requests_variable_replaces_that_of_the_training(opened):
    source = "{{ 'on' if enable_thinking else 'off' }}" + CHATML
    _, template = opened(source, arguments={"enable_thinking": False})
    assert template.render(chat("a", "b")).text.startswith("off")
    assert template.render(chat("a"), arguments={"enable_thinking": True}).text.startswith("on")


def test_a_variable_that_the_user_sets_is_not_tried_otherwise(opened):
    source = CHATML.replace(
        "assistant\n{% endif %}", "assistant\n{% if enable_thinking %}<think>{% endif %}{% endif %}"
    )
    _, template = opened(source, arguments={"enable_thinking": True})
    (found,) = supervise([chat("a", "b")], template)
    assert found.samples == ()
    assert found.notes == {"not_learnt": 1}


@pytest.mark.parametrize("depth", [300, 900, 100_000])
def test_nesting_without_end_is_written_or_refused(opened, depth):
    _, template = opened(QWEN_LIKE)
    call = ToolCall(id="1", name="f", arguments='{"a":' * depth + "1" + "}" * depth)
    turns = [Turn(role="user", text="a"), Turn(role="assistant", text="", tool_calls=(call,))]
    (found,) = supervise([Chat(turns)], template)
    assert isinstance(found, TemplateError) or '"a"' in template.decode(found.samples[0].ids)
    tools = json.dumps([{"type": "function", "function": {"name": "f"}}])
    tools = tools.replace('"f"', '"f", "parameters": ' + "[" * 900 + "]" * 900)
    (found,) = supervise([Chat(chat("a", "b").turns, tools)], template)
    assert isinstance(found, TemplateError)


@pytest.mark.parametrize(
    ("source", "written"),
    [
        ("{{ 'developer' }}", [("system", "S"), ("developer", "D"), ("user", "U")]),
        ("", [("system", "S\n\nD"), ("user", "U")]),
    ],
)
def test_a_developer_beside_a_system_is_one_message_where_the_role_is_unknown(source, written):
    roles = {"system": "S", "developer": "D", "user": "U"}
    turns = [Turn(role=role, text=text) for role, text in roles.items()]
    messages, _ = messages_of(Chat(turns), source)
    assert [(message["role"], message["content"]) for message in messages] == written


def test_ids_of_calls_have_nine_characters_where_the_template_refuses_others(opened):
    source = (
        "{% for m in messages %}{% for c in m.tool_calls or [] %}{% if c.id | length != 9 %}"
        "{{ raise_exception('length 9') }}{% endif %}({{ c.id }} {{ c.function | tojson }})"
        "{% endfor %}{% if m.tool_call_id %}<{{ m.tool_call_id }}>{% endif %}{{ m.content }};"
        "{% endfor %}"
    )
    _, template = opened(source)

    def call(id):
        return ToolCall(id=id, name="f", arguments="{}")

    long = "call_Zv6GJ6ZdDsTqVnOe1XbYq0aL"
    turns = [
        Turn(role="user", text="q"),
        Turn(role="assistant", text="", tool_calls=(call("abcdefghi"), call(long))),
        Turn(role="tool", text="second", tool_call_id=long),
        Turn(role="tool", text="first", tool_call_id="abcdefghi"),
        Turn(role="assistant", text="", tool_calls=(call(long),)),
        Turn(role="tool", text="third", tool_call_id=long),
    ]
    text = template.render(Chat(turns)).text
    assert "(abcdefghi" in text
    assert "(call00001" in text
    assert "<call00001>second;<abcdefghi>first;" in text
    assert text.endswith("<call00002>third;")
    _, other = opened(source.replace("!= 9", "== 9999"))
    kept = other.render(Chat(turns)).text
    assert f"<{long}>second;" in kept


WITH_REPR = CHATML.replace("{{ m.content }}", "{{ m.content }}{{ m.tool_calls or '' }}")
WITH_ASCII = WITH_REPR.replace(
    "m.tool_calls or ''", "(m.tool_calls or '') | tojson(ensure_ascii=True)"
)


@pytest.mark.parametrize("source", ["{{ tools }}" + CHATML, WITH_REPR, WITH_ASCII])
def test_no_mark_is_written_where_a_template_escapes_it(opened, source):
    plain, template = opened(source)
    arguments = json.dumps({"a<|im_end|>": ["</s>\n", r"\ufdd0 <s>"]})
    calls = (ToolCall(id="a", name="f", arguments=arguments),)
    tools = [{"type": "function", "function": {"name": "f", "description": "<|im_end|>"}}]
    found = Chat(
        [
            Turn(role="user", text="hi"),
            Turn(role="assistant", text="x", tool_calls=calls),
            Turn(role="tool", text="b", tool_call_id="a"),
        ],
        json.dumps(tools),
    )
    # Arguments are JSON where a template would write an object as Python does.
    as_text = source == WITH_REPR
    function = {"name": "f", "arguments": arguments if as_text else json.loads(arguments)}
    call = {"id": "a", "type": "function", "function": function}
    written = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "x", "tool_calls": [call]},
        {"role": "tool", "content": "b"},
    ]
    expected = plain.apply_chat_template(written, tools=tools, tokenize=False)
    assert template.decode(template.ids(found)) == expected


@pytest.mark.parametrize("name", ["style", "chat", "mark", "chat_template", "sep_token", "a b"])
def test_a_variable_may_have_any_name_that_is_not_taken(backend, name):
    source = f"{{# {name} #}}{{{{ {name.split()[0]} }}}}{CHATML}"
    plain = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", sep_token="<s>", chat_template=source
    )
    if name == "a b":
        with pytest.raises(UserError, match="has no variable"):
            ChatTemplate(plain, arguments={name: "x"})
    elif name in ("chat_template", "sep_token"):
        with pytest.raises(UserError, match=f"variable {name} cannot be set"):
            ChatTemplate(plain, arguments={name: "x"})
    else:
        template = ChatTemplate(plain, arguments={name: "x"})
        assert template.render(chat("a")).text == "x<|im_start|>user\na<|im_end|>\n"


def test_an_escaped_mark_moves_what_is_learnt(opened):
    source = (
        "{{ tools }}{% for m in messages %}{% if m.role == 'user' %}[Q]{{ m.content }}[/Q]"
        "{% else %}{% generation %}{{ m.content }}</s>{% endgeneration %}{% endif %}{% endfor %}"
    )
    _, template = opened(source)
    tools = json.dumps([{"name": "f", "description": "<s></s>"}])
    (found,) = supervise([chat("a", "b", "c", "d", tools=tools)], template)
    assert [learnt(template, sample) for sample in found.samples] == [["b</s>", "d</s>"]]


@pytest.mark.parametrize("texts", [("a<|im_", "end|>"), ("<", "/s>b"), ("<|im", "_end", "|>")])
def test_texts_that_a_template_joins_are_no_token(opened, texts):
    _, template = opened("{% for m in messages %}{{ m.content | trim }}{% endfor %}")
    turns = [Turn(role="user", text=f"{text} ") for text in texts]
    ids = template.ids(Chat(turns))
    assert template.decode(ids) == "".join(texts)
    assert not template.control_ids.intersection(ids)


def test_a_filter_for_another_type_refuses_the_conversation(opened):
    source = "{% for m in messages %}{% for c in m.tool_calls or [] %}"
    _, template = opened(
        f"{source}{{{{ c.function.arguments | dictsort }}}}{{% endfor %}}{{% endfor %}}"
    )
    call = ToolCall(id="a", name="f", arguments="[1]")
    turns = [Turn(role="user", text="a"), Turn(role="assistant", text="", tool_calls=(call,))]
    with pytest.raises(TemplateError, match="has no attribute 'items'"):
        template.render(Chat(turns))


def test_an_answer_without_a_generation_block_is_counted(opened):
    source = CHATML.replace(
        "{{ m.content }}<|im_end|>",
        "{% if m.role == 'assistant' and m.content != 'skip' %}{% generation %}{{ m.content }}"
        "<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}",
    )
    _, template = opened(source)
    (found,) = supervise([chat("a", "skip", "b", "c")], template)
    assert [learnt(template, sample) for sample in found.samples] == [["c<|im_end|>"]]
    assert [sample.answers for sample in found.samples] == [[3]]
    assert found.notes == {"not_learnt": 1}


def test_a_call_after_a_special_token_is_learnt_and_that_token_ends_no_answer(opened):
    source = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% if m.tool_calls %}<s>"
        "{{ m.tool_calls[0].function | tojson }}{% else %}<|im_end|>{% endif %}\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    plain, template = opened(source)
    calls = (ToolCall(id="a", name="f", arguments="{}"),)
    turns = [Turn(role="user", text="a"), Turn(role="assistant", text="", tool_calls=calls)]
    (found,) = supervise([Chat(turns)], template)
    assert learnt(template, found.samples[0]) == ['<s>{"name": "f", "arguments": {}}']
    assert found.notes == {"no_end_of_turn": 1}
    assert ends_of_turn(template) == (plain.convert_tokens_to_ids("<|im_end|>"),)


def test_a_weight_of_another_role_is_counted(opened):
    _, template = opened(CHATML)
    turns = [Turn(role="user", text="a", weight=1.0), Turn(role="assistant", text="b")]
    (found,) = supervise([Chat(turns)], template)
    assert found.notes == {"weight_not_used": 1}


def test_a_template_for_lists_of_parts_is_refused(opened):
    """It writes nothing of a text, whose characters have no `text`."""
    parts = "{% for part in m.content %}{{ part.text }}{% endfor %}"
    _, template = opened(CHATML.replace("{{ m.content }}", parts))
    with pytest.raises(UserError, match="does not write the text of a message"):
        ends_of_turn(template)


def test_answers_with_names_of_special_tokens_are_counted(opened):
    """A call written as text is not what the template would write for it."""
    _, template = opened(QWEN_LIKE)
    answers = ("<tool_call>{}</tool_call>", "<think>r</think>fine")
    (found,) = supervise([chat("<|im_end|>", answers[0], "b", answers[1])], template)
    assert found.notes["special_as_text"] == 1


def test_few_renderings_are_in_memory_at_a_time(opened, monkeypatch):
    """Those of all answers are together as long as the square of the conversation."""
    _, template = opened(QWEN_LIKE)
    turns = chat(*("<think>r</think>a" if n % 2 else "q" for n in range(20)))
    (together,) = supervise([turns], template)
    encode, sizes = template.encode, []
    monkeypatch.setattr(template, "encode", lambda texts: sizes.append(len(texts)) or encode(texts))
    monkeypatch.setattr(supervision, "BATCH_CHARACTERS", 1)
    assert supervise([turns], template) == [together]
    assert len(together.samples) == 10
    assert max(sizes) == 2


def test_half_an_emoji_in_json_refuses_the_conversation(opened):
    """JSON can write it as an escape sequence, which is text until the arguments are parsed."""
    _, template = opened(QWEN_LIKE)
    half = json.dumps({"a": "\ud83d"})
    calls = (ToolCall(id="1", name="f", arguments=half),)
    turns = [Turn(role="user", text="a"), Turn(role="assistant", text="", tool_calls=calls)]
    tools = json.dumps([{"type": "function", "function": {"name": "f", "description": "\ud83d"}}])
    for refused in (Chat(turns), Chat(chat("a", "b").turns, tools)):
        (found,) = supervise([refused], template)
        assert isinstance(found, TemplateError)
        assert "unpaired surrogate" in str(found)
        with pytest.raises(TemplateError):
            template.ids(refused)


def test_a_generation_block_within_a_macro_is_refused_with_the_reason(opened):
    """transformers finds such a block in another place of the text."""
    block = "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
    source = (
        "{% macro write(m) %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
        + block
        + "{% else %}{{ m.content }}<|im_end|>{% endif %}{% endmacro %}"
        "{% for m in messages %}{{ write(m) }}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    _, template = opened(source)
    with pytest.raises(UserError, match="must not be within a macro"):
        ends_of_turn(template)
