"""Rows of the token table with a model's own chat template."""

import pytest
from transformers import PreTrainedTokenizerFast

from ochat_ray.data.config import PrepareConfig
from ochat_ray.data.model_labels import normalize_model
from ochat_ray.data.tokenize_chat import reason_for_no_sample, tokenize_chats
from ochat_ray.schema import Conversation, ModelClass, Turn
from ochat_ray.tokenization.chat_template import ChatTemplate
from tests.conftest import byte_level_tokenizer

SOURCE = (
    "{% for m in messages %}{{ m.role }}: "
    "{% if m.reasoning_content and loop.last %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content }}<|end_of_turn|>{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture(scope="module")
def template():
    return ChatTemplate(
        PreTrainedTokenizerFast(tokenizer_object=byte_level_tokenizer(), chat_template=SOURCE)
    )


def conversation(*texts, **fields):
    turns = [Turn(role=("user", "assistant")[n % 2], text=text) for n, text in enumerate(texts)]
    return Conversation(id="c", source="s", turns=tuple(turns), **fields)


def written(template, result):
    return [template.decode(sample.input_ids) for sample in result.samples]


ROUNDS = ["a" * 20, "b" * 20, "c" * 20, "d" * 20]
FIRST, SECOND = (
    f"user: {q}<|end_of_turn|>assistant: {a}<|end_of_turn|>" for q, a in (ROUNDS[:2], ROUNDS[2:])
)


@pytest.mark.parametrize(
    ("long", "limit", "samples"),
    [
        ("cut", 500, [FIRST + SECOND]),
        ("split", 500, [FIRST + SECOND]),
        ("drop", 500, [FIRST + SECOND]),
        ("split", 63, [FIRST, SECOND]),
        ("drop", 63, []),
        ("cut", 10, []),
    ],
)
def test_a_long_conversation_is_cut_split_or_dropped(template, long, limit, samples):
    (result,) = tokenize_chats(
        [conversation(*ROUNDS)], template=template, max_length=limit, long=long
    )
    assert written(template, result) == samples
    assert all(len(sample.input_ids) <= limit for sample in result.samples)
    assert result.yields[long].samples == len(samples)
    assert [sample.id for sample in result.samples] == ["c", "c#2"][: len(samples)]


def test_what_is_cut_off_is_counted(template):
    (whole,) = tokenize_chats([conversation(*ROUNDS)], template=template, max_length=500)
    (cut,) = tokenize_chats([conversation(*ROUNDS)], template=template, max_length=70)
    assert cut.length == whole.length
    assert cut.cut == whole.length - 70
    assert cut.samples[0].input_ids == whole.samples[0].input_ids[:70]


def test_a_split_conversation_has_its_instructions_in_each_sample(template):
    record = conversation(*ROUNDS)
    system = Turn(role="system", text="S")
    record = Conversation(id="c", source="s", turns=(system, *record.turns))
    (result,) = tokenize_chats([record], template=template, max_length=80, long="split")
    head = "system: S<|end_of_turn|>"
    assert written(template, result) == [head + FIRST, head + SECOND]


def test_answers_in_samples_of_their_own_are_each_learnt_or_the_last(template):
    turns = (
        Turn(role="user", text="a"),
        Turn(role="assistant", text="b", reasoning="r"),
        Turn(role="user", text="c"),
        Turn(role="assistant", text="d", reasoning="s"),
    )
    record = Conversation(id="c", source="s", turns=turns)
    (each,) = tokenize_chats([record], template=template, max_length=500)
    (last,) = tokenize_chats([record], template=template, max_length=500, separate_answers="last")
    assert len(each.samples) == 2
    assert [s.input_ids for s in last.samples] == [each.samples[1].input_ids]
    assert last.notes == {"separate_sample": 1, "earlier_answer_left_out": 1}


def test_weights_by_label_multiply_the_turns(template):
    record = conversation("a", "b", model="Model: GPT-4")
    (plain,) = tokenize_chats([record], template=template, max_length=99)
    assert set(plain.samples[0].loss_weights) == {0.0, 1.0}
    classes = {normalize_model(record.model): ModelClass(weight=0.25)}
    (result,) = tokenize_chats([record], template=template, max_length=99, classes=classes)
    assert set(result.samples[0].loss_weights) == {0.0, 0.25}


def test_a_refusal_is_the_result_of_one_conversation_alone():
    refusing = ChatTemplate(
        PreTrainedTokenizerFast(
            tokenizer_object=byte_level_tokenizer(),
            chat_template="{% if messages[0].content == 'bad' %}{{ raise_exception('not this') }}"
            "{% endif %}" + SOURCE,
        )
    )
    bad, good = tokenize_chats(
        [conversation("bad", "b"), conversation("a", "b")], template=refusing, max_length=99
    )
    assert (bad.refused, bad.samples) == ("not this", ())
    assert good.samples


@pytest.mark.parametrize(
    ("source", "weight", "limit", "reason"),
    [
        (SOURCE, 1.0, 10, "no_supervised_tokens"),
        (SOURCE, 0.0, 500, "no_loss_weight"),
        (
            SOURCE.replace("assistant: {% endif", "assistant: <think>{% endif"),
            1.0,
            500,
            "template_refused",
        ),
        ("{{ raise_exception('no') }}", 1.0, 500, "template_refused"),
    ],
)
def test_a_conversation_without_samples_has_the_reason(source, weight, limit, reason):
    """A larger context, which prepare advises for the first, helps none of the others."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level_tokenizer(), chat_template=source
    )
    turns = (Turn(role="user", text="a" * 9), Turn(role="assistant", text="b", weight=weight))
    found = Conversation(id="c", source="s", turns=turns)
    (result,) = tokenize_chats([found], template=ChatTemplate(tokenizer), max_length=limit)
    config = PrepareConfig(recipe="chat", max_length=limit)
    assert result.samples == ()
    assert reason_for_no_sample(found, result, config)[0] == reason


def test_windows_of_a_long_conversation_are_found_with_few_renderings(template, monkeypatch):
    """Each round's answer is rendered for its window, and again for the window's samples."""
    render, count = template.render, []
    monkeypatch.setattr(template, "render", lambda *a, **k: count.append(1) or render(*a, **k))
    found = conversation(*(f"text {n}" for n in range(80)))
    limit = 10 * (len(SOURCE) // 8)
    (result,) = tokenize_chats([found], template=template, max_length=limit, long="split")
    assert "".join(written(template, result)).count("text") == 80
    assert all(len(sample.input_ids) <= limit for sample in result.samples)
    assert 1 < len(result.samples) < 40
    assert len(count) <= 2 * 40 * 4
