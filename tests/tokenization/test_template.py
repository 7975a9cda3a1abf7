"""The template, against ids worked out by hand from the tokenizer's own vocabulary."""

import copy

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ochat_ray.errors import UserError
from ochat_ray.schema import Turn
from ochat_ray.tokenization.template import (
    check_template,
    encode,
    encode_batch,
    exact_chat_template,
)
from ochat_ray.tokenization.tokenizer import end_of_turn_id

USER = {"role": "user", "text": "hello"}
ASSISTANT = {"role": "assistant", "text": "fine"}


def ids_of(tokenizer, text):
    """One segment's ids from the `tokenizers` library itself."""
    return tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids


def test_openchat_is_bos_then_prefix_text_and_end_of_turn(tokenizer):
    end = end_of_turn_id(tokenizer)
    user = [*ids_of(tokenizer, "Human: "), *ids_of(tokenizer, "hello"), end]
    prefix, answer = ids_of(tokenizer, "Assistant: "), [*ids_of(tokenizer, "fine"), end]
    ids, weights = encode([USER, ASSISTANT], "openchat", tokenizer)
    assert ids == [tokenizer.bos_token_id, *user, *prefix, *answer]
    assert weights == [0.0] * (1 + len(user) + len(prefix)) + [1.0] * len(answer)


def test_opencoder_has_no_bos_and_no_blank_after_the_role(tokenizer):
    ids, _ = encode([USER], "opencoder", tokenizer)
    expected = [*ids_of(tokenizer, "User:"), *ids_of(tokenizer, "hello")]
    assert ids == [*expected, end_of_turn_id(tokenizer)]


def test_a_system_turn_comes_after_bos_without_a_prefix(tokenizer):
    ids, weights = encode([{"role": "system", "text": "Be kind."}], "openchat", tokenizer)
    text = ids_of(tokenizer, "Be kind.")
    assert ids == [tokenizer.bos_token_id, *text, end_of_turn_id(tokenizer)]
    assert set(weights) == {0.0}


@pytest.mark.parametrize("typed", ["<|end_of_turn|>", "<s>", "a<|end_of_turn|>b"])
def test_a_special_token_that_a_person_typed_is_text(tokenizer, typed):
    ids, _ = encode([{"role": "user", "text": typed}], "openchat", tokenizer)
    assert ids.count(end_of_turn_id(tokenizer)) == 1
    assert ids.count(tokenizer.bos_token_id) == 1
    text = ids[1 + len(ids_of(tokenizer, "Human: ")) : -1]
    assert tokenizer.decode(text) == typed


def test_generation_prompt_is_the_training_ids_up_to_the_answer(tokenizer):
    prompt, _ = encode([USER], "openchat", tokenizer, add_generation_prompt=True)
    whole, _ = encode([USER, ASSISTANT], "openchat", tokenizer)
    assert whole[: len(prompt)] == prompt


def test_turns_may_be_records_or_mappings(tokenizer):
    assert encode([Turn(role="user", text="hello")], "openchat", tokenizer) == encode(
        [USER], "openchat", tokenizer
    )


def test_a_batch_is_its_conversations_one_by_one(tokenizer):
    conversations = [[USER, ASSISTANT], [], [USER], [ASSISTANT, USER]]
    assert encode_batch(conversations, "openchat", tokenizer) == [
        encode(turns, "openchat", tokenizer) for turns in conversations
    ]


def test_wrong_use_is_one_clear_line(tokenizer):
    with pytest.raises(UserError, match="unknown model type 'gpt'"):
        encode([USER], "gpt", tokenizer)
    with pytest.raises(UserError, match="unknown role 'robot'"):
        encode([{"role": "robot", "text": ""}], "openchat", tokenizer)


def test_a_condition_stands_before_every_role_and_is_one_segment_with_it(tokenizer):
    end = end_of_turn_id(tokenizer)
    system = [*ids_of(tokenizer, "Be kind."), end]
    user = [*ids_of(tokenizer, "GPT4 Human: "), *ids_of(tokenizer, "hello"), end]
    prefix, answer = ids_of(tokenizer, "GPT4 Assistant: "), [*ids_of(tokenizer, "fine"), end]
    turns = [{"role": "system", "text": "Be kind."}, USER, ASSISTANT]
    ids, weights = encode(
        turns, "openchat", tokenizer, condition="GPT4", add_generation_prompt=True
    )
    assert ids == [tokenizer.bos_token_id, *system, *user, *prefix, *answer, *prefix]
    before = 1 + len(system) + len(user) + len(prefix)
    assert weights == [0.0] * before + [1.0] * len(answer) + [0.0] * len(prefix)


def test_a_condition_before_opencoders_prefix(tokenizer):
    ids, _ = encode([USER], "opencoder", tokenizer, condition="GPT3")
    expected = [*ids_of(tokenizer, "GPT3 User:"), *ids_of(tokenizer, "hello")]
    assert ids == [*expected, end_of_turn_id(tokenizer)]


def test_an_empty_condition_is_none(tokenizer):
    turns = [USER, ASSISTANT]
    assert encode(turns, "openchat", tokenizer, condition="") == encode(
        turns, "openchat", tokenizer
    )


def test_a_batch_has_each_conversation_s_own_condition(tokenizer):
    turns, conditions = [USER, ASSISTANT], ["GPT4", "", "GPT3", "GPT4"]
    assert encode_batch([turns] * 4, "openchat", tokenizer, conditions=conditions) == [
        encode(turns, "openchat", tokenizer, condition=condition) for condition in conditions
    ]


def test_the_chat_template_writes_the_same_text_and_marks_where_segments_meet(tokenizer):
    copied = copy.deepcopy(tokenizer)
    copied.chat_template = exact_chat_template("openchat", ["<s>"])
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "hello <s>"},
        {"role": "assistant", "content": "fine"},
    ]
    rendered = copied.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == (
        "<s>\ufdd1Be kind.\ufdd1<|end_of_turn|>"
        "Human: \ufdd0hello <\ufdd1s>\ufdd1\ufdd1<|end_of_turn|>"
        "Assistant: \ufdd0fine\ufdd1<|end_of_turn|>Assistant: "
    )


@pytest.mark.parametrize("model_type", ["openchat", "openchat_8192", "opencoder"])
def test_a_tokenizer_that_can_write_the_template_passes_the_check(tokenizer, model_type):
    check_template(model_type, tokenizer, ["GPT4", "日本"])


def test_a_tokenizer_without_bos_fails_the_check_of_the_types_that_need_it(tokenizer):
    without = copy.deepcopy(tokenizer)
    without.bos_token = None
    check_template("opencoder", without)
    for model_type in ("openchat", "openchat_8192"):
        with pytest.raises(UserError, match="needs a tokenizer with a BOS token"):
            check_template(model_type, without)


def test_a_condition_that_the_tokenizer_cannot_write_fails_the_check():
    model = models.WordLevel(
        {"<unk>": 0, "<s>": 1, "Human": 2, "Assistant": 3, ":": 4, "a": 5, "User": 6},
        unk_token="<unk>",
    )
    words = Tokenizer(model)
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.add_special_tokens(["<|end_of_turn|>"])
    small = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", unk_token="<unk>")
    check_template("openchat", small)
    with pytest.raises(UserError, match=r"no tokens for 'GPT4 Human: '.*--conditions"):
        check_template("openchat", small, ["GPT4"])
