"""Cleaning: each rule, the conversation beside what becomes of it."""

import pytest

from ochat_ray.data.clean import clean, normalize_model, rules
from ochat_ray.schema import Conversation, Drop, Reason, Turn

ROLES = {"s": "system", "u": "user", "a": "assistant"}


def conversation(*turns, model=None):
    return Conversation(
        id="x",
        source="f",
        model=model,
        turns=tuple(Turn(role=ROLES[turn[0]], text=turn[2:]) for turn in turns),
    )


def cleaned(*turns, model=None, keep_model="any", blocked_words=("openai",)):
    result = clean(
        conversation(*turns, model=model), rules(keep_model=keep_model, blocked_words=blocked_words)
    )
    if isinstance(result, Drop):
        return result.reason
    return [f"{turn.role[0]}:{turn.text}" for turn in result.turns]


@pytest.mark.parametrize(
    ("turns", "kept"),
    [
        (["u:q", "a:r"], ["u:q", "a:r"]),
        (["s:rules", "u:q", "a:r"], ["s:rules", "u:q", "a:r"]),
        (["a:hello", "u:q", "a:r", "u:bye"], ["u:q", "a:r"]),
        (["s:rules", "a:hello", "u:q", "a:r"], ["s:rules", "u:q", "a:r"]),
        (["u:  q\n", "a:r\t "], ["u:  q\n", "a:r\t "]),
    ],
)
def test_what_is_kept(turns, kept):
    assert cleaned(*turns) == kept


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([], Reason.NO_TURNS),
        (["u:q"], Reason.NO_TURNS),
        (["a:r"], Reason.NO_TURNS),
        (["s:rules"], Reason.NO_TURNS),
        (["u:q", "a: \n"], Reason.EMPTY_TURN),
        (["u:", "a:r"], Reason.EMPTY_TURN),
        (["u:q", "u:q", "a:r"], Reason.WRONG_ROLE_ORDER),
        (["u:q", "a:r", "a:r"], Reason.WRONG_ROLE_ORDER),
        (["u:q", "s:late", "a:r"], Reason.WRONG_ROLE_ORDER),
        (["u:q", "a:trained by OpenAI."], Reason.BLOCKED_WORD),
    ],
)
def test_what_is_dropped(turns, reason):
    assert cleaned(*turns) == reason


@pytest.mark.parametrize("text", ["openaikey", "my_openai", "open ai"])
def test_blocked_words_are_whole_words(text):
    assert cleaned("u:q", f"a:{text}") == ["u:q", f"a:{text}"]


def test_no_blocked_words_block_nothing():
    assert cleaned("u:q", "a:OpenAI", blocked_words=()) == ["u:q", "a:OpenAI"]


@pytest.mark.parametrize(
    ("label", "kept"),
    [("Model: GPT-4", True), ("gpt-4", True), ("Model: Default (GPT-3.5)", False), (None, False)],
)
def test_the_model_label_is_normalised(label, kept):
    result = cleaned("u:q", "a:r", model=label, keep_model="GPT-4")
    assert (result == ["u:q", "a:r"]) == kept
    assert kept or result == Reason.OTHER_MODEL


def test_normalize_model():
    assert normalize_model(" Model:  GPT-4 ") == "gpt-4"
    assert normalize_model(None) == ""
