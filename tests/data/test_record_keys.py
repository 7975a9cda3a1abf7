"""Keys beside the text of turns: weights, conditions, tools, system prompts, unknown ones."""

import math

import pytest

from ochat_ray.schema import Reason
from tests.data.reading import (
    MESSAGES,
    READ,
    TURNS,
    drop,
    one,
    texts,
    weights,
)

# Weights, conditions, tools


def test_openchat_s_own_format():
    found = one(
        {
            "items": [
                {"role": "user", "content": "q", "weight": 0.0},
                {"role": "assistant", "content": "draft", "weight": 0.0},
                {"role": "user", "content": "again", "weight": 0.0},
                {"role": "assistant", "content": "good", "weight": 0.25},
            ],
            "condition": "GPT4",
            "system": "Speak up.",
        }
    )
    assert [(turn.role, turn.loss_weight) for turn in found.turns] == [
        ("system", 0.0),
        ("user", 0.0),
        ("assistant", 0.0),
        ("user", 0.0),
        ("assistant", 0.25),
    ]
    assert found.condition == "GPT4"
    assert found.unknown_keys == ()


@pytest.mark.parametrize(
    ("flags", "weight"),
    [
        ({}, 1.0),
        ({"weight": 0}, 0.0),
        ({"weight": 1}, 1.0),
        ({"weight": 0.5}, 0.5),
        ({"weight": 2}, 2.0),
        ({"weight": None}, 1.0),
        ({"train": False}, 0.0),
        ({"train": True}, 1.0),
        ({"training": False}, 0.0),
        ({"train_on_turn": False}, 0.0),
        ({"trainable": 0}, 0.0),
        ({"loss": False}, 0.0),
        ({"loss": 0.5}, 0.5),
        ({"mask": True}, 0.0),
        ({"masked": False}, 1.0),
        ({"weight": 0, "train": False}, 0.0),
    ],
)
def test_weights_and_switches_of_a_turn(flags, weight):
    assert weights({"messages": [MESSAGES[0], MESSAGES[1] | flags]}) == [0.0, weight]


def test_a_user_turn_may_have_a_weight():
    assert weights({"messages": [MESSAGES[0] | {"weight": 1}, MESSAGES[1]]}) == [1.0, 1.0]
    assert weights({"conversations": [TURNS[0] | {"train": True}, TURNS[1]]}) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("flags", "detail"),
    [
        ({"weight": "x"}, "weight"),
        ({"weight": "1"}, "weight"),
        ({"weight": -1}, "weight"),
        ({"weight": math.nan}, "weight"),
        ({"weight": math.inf}, "weight"),
        ({"weight": 1e39}, "weight"),
        ({"weight": 10**400}, "weight"),
        ({"weight": True}, "weight"),
        ({"weight": [1]}, "weight"),
        ({"train": "no"}, "train"),
        ({"loss": -1}, "loss"),
        ({"mask": 0.5}, "mask"),
        ({"mask": [1]}, "mask"),
        ({"weight": 1, "train": False}, "weight and train disagree"),
    ],
)
def test_a_weight_that_is_none_drops_the_record_by_name(flags, detail):
    reason, found = drop({"messages": [MESSAGES[0], MESSAGES[1] | flags]})
    assert reason == Reason.MALFORMED
    assert found.startswith(f"turn 1: {detail}")


@pytest.mark.parametrize("empty", ["[]", [], {}, None, "", " [ ] ", "null", "{}"])
@pytest.mark.parametrize("key", ["tools", "functions", "images"])
def test_keys_that_ask_for_nothing_have_no_effect(key, empty):
    found = one({"messages": MESSAGES, key: empty})
    assert found.unknown_keys == ()


@pytest.mark.parametrize("key", ["tools", "functions", "images", "videos"])
@pytest.mark.parametrize("value", ['[{"name": "f"}]', [{"type": "function"}], ["a.png"]])
def test_tools_and_pictures_of_a_record_are_unsupported_by_name(key, value):
    assert drop({"messages": MESSAGES, key: value}) == (Reason.UNSUPPORTED, key)


@pytest.mark.parametrize(
    ("turn", "detail"),
    [
        ({"role": "assistant", "content": None, "tool_calls": [{"id": "a"}]}, "tool_calls"),
        ({"role": "assistant", "tool_calls": [{"id": "a"}]}, "tool_calls"),
        ({"role": "assistant", "content": "", "function_call": {"name": "f"}}, "function_call"),
        ({"role": "assistant", "content": None, "refusal": "No."}, "refusal"),
        ({"role": "user", "content": "x", "images": ["a.png"]}, "images"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "part image_url"),
        ({"role": "user", "content": [{"type": "input_audio"}]}, "part input_audio"),
        ({"role": "user", "parts": [{"inlineData": {"mimeType": "image/png"}}]}, "inlineData"),
        ({"role": "assistant", "content": "x", "train_detail": [{"train": True}]}, "train_detail"),
        ({"role": "system", "content": "x", "name": "example_user"}, "name"),
    ],
)
def test_what_the_template_cannot_write_is_unsupported_by_name(turn, detail):
    reason, found = drop({"messages": [turn, *MESSAGES]})
    assert reason == Reason.UNSUPPORTED
    assert detail in found


def test_empty_keys_of_a_turn_have_no_effect():
    turn = MESSAGES[1] | {"tool_calls": None, "function_call": None, "refusal": None, "audio": []}
    assert one({"messages": [MESSAGES[0], turn]}).unknown_keys == ()


def test_unknown_keys_are_named_once_and_empty_ones_are_not():
    found = one(
        {
            "conversation_id": "c",
            "model": "gpt-4",
            "language": "English",
            "redacted": False,
            "tag": None,
            "notes": [],
            "conversation": [
                MESSAGES[0] | {"timestamp": 1, "name": "Ann"},
                {
                    "role": "assistant",
                    "content": [{"type": "text", "text": "hello", "annotations": [1]}],
                    "timestamp": 2,
                    "reasoning_content": "Hm.",
                },
            ],
        }
    )
    assert found.id == "c"
    assert found.unknown_keys == (
        "language",
        "redacted",
        "turn.content.annotations",
        "turn.name",
        "turn.reasoning_content",
        "turn.timestamp",
    )


def test_too_many_unknown_keys_share_a_name():
    found = one({"messages": MESSAGES} | {f"k{n:04}": 1 for n in range(5000)})
    assert len(found.unknown_keys) == 101
    assert found.unknown_keys[-1] == "other keys"


# System prompts

SYSTEM = {"from": "system", "value": "Be kind."}


@pytest.mark.parametrize("empty", ["", " \n", "\u200b", None, []])
def test_an_empty_system_prompt_is_none(empty):
    assert texts({"conversations": TURNS, "system": empty}) == READ
    system = {"from": "system", "value": empty}
    assert texts({"conversations": [system, *TURNS]}) == READ
    assert texts({"conversations": [*TURNS, system, *TURNS]}) == [*READ, *READ]


@pytest.mark.parametrize(
    ("item", "system"),
    [
        ({"conversations": [SYSTEM, *TURNS]}, "Be kind."),
        ({"conversations": TURNS, "system": "Be kind."}, "Be kind."),
        ({"conversations": TURNS, "system_prompt": "Be kind."}, "Be kind."),
        ({"conversations": [SYSTEM, *TURNS], "system": "Be kind."}, "Be kind."),
        ({"conversations": [SYSTEM, *TURNS], "system": "Be brief."}, "Be brief.\n\nBe kind."),
        (
            {"messages": [{"role": "system", "content": "a"}, {"role": "developer", "content": "b"},
                          *MESSAGES]},
            "a\n\nb",
        ),
        (
            {"contents": MESSAGES, "systemInstruction": {"parts": [{"text": "Be kind."}]}},
            "Be kind.",
        ),
    ],
)  # fmt: skip
def test_system_prompts_become_one_turn_at_the_start(item, system):
    assert texts(item) == [("system", system), *READ]


def test_a_system_turn_later_on_stays_there_for_the_rules():
    assert [role for role, _ in texts({"conversations": [*TURNS, SYSTEM]})][-1] == "system"
