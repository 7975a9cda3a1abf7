"""Records of public data sets in the variants that they really have."""

import json

import pytest

from ochat_ray.data.records import ReadOptions, records_of
from ochat_ray.schema import Conversation, Reason

MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
ROUNDS = [{"input": "hi", "output": "hello"}, {"input": "more", "output": "yes"}]


def read(item):
    return list(records_of(item, source="x.json", index=0))


def one(item):
    (record,) = read(item)
    assert isinstance(record, Conversation), record
    return record


def texts(item):
    return [turn.text for turn in one(item).turns]


def drop(item):
    (record,) = read(item)
    return record.reason, record.detail


@pytest.mark.parametrize("name", ["conversation", "conversations", "turns", "dialogue"])
def test_rounds_are_one_conversation(name):
    item = {"source": "x", name: ROUNDS}
    assert texts(item) == ["hi", "hello", "more", "yes"]
    assert one(item).unknown_keys == ("source",)


@pytest.mark.parametrize(
    "item", [{"data": ROUNDS}, {"conversations": [row | {"id": n} for n, row in enumerate(ROUNDS)]}]
)
def test_pairs_of_a_file_or_with_ids_are_records_of_their_own(item):
    assert [len(record.turns) for record in read(item)] == [2, 2]


def test_a_round_has_a_weight_and_a_system_prompt_and_unknown_keys():
    rounds = [ROUNDS[0] | {"system": "S", "weight": 0}, ROUNDS[1] | {"score": 1}]
    found = one({"conversation": rounds})
    assert [(turn.text, turn.loss_weight) for turn in found.turns] == [
        ("S", 0.0),
        ("hi", 0.0),
        ("hello", 0.0),
        ("more", 0.0),
        ("yes", 1.0),
    ]
    assert found.unknown_keys == ("turn.score",)
    rounds[1]["tools"] = [{}]
    assert drop({"conversation": rounds}) == (Reason.UNSUPPORTED, "round 1: tools")


def test_rounds_of_which_one_has_no_answer_are_no_shorter_conversation():
    reason, detail = drop({"conversation": [ROUNDS[0], {"input": "more"}]})
    assert (reason, detail[:8]) == (Reason.MALFORMED, "round 1:")


def test_a_pair_beside_an_empty_list_is_read():
    assert texts({"messages": [], "prompt": "Q", "completion": "A"}) == ["Q", "A"]


def test_a_prompt_that_is_a_transcript_is_unsupported():
    item = {"prompt": "\n\nHuman: Q\n\nAssistant:", "chosen": " A", "rejected": " B"}
    assert drop(item) == (Reason.UNSUPPORTED, "prompt: a transcript in one string")


def test_a_tree_without_its_first_message_is_not_read():
    reply = {"message_id": "b", "role": "assistant", "text": "A", "replies": []}
    root = {"message_id": "a", "role": "prompter", "text": "Q", "replies": [reply]}
    assert drop({"prompt": root | {"deleted": True}})[0] == Reason.MALFORMED


@pytest.mark.parametrize(
    "text", ['{"role": "assistant", "content": "x"}', json.dumps(MESSAGES), '[{"from": "Rome"}]']
)
def test_an_answer_in_json_is_a_text(text):
    assert texts({"instruction": "Write JSON", "output": text}) == ["Write JSON", text]
    assert texts({"data": ["Write JSON", text]}) == ["Write JSON", text]


def test_a_prompt_that_is_one_turn_in_json_is_a_text():
    prompt = '{"role": "user", "content": "hi"}'
    assert texts({"prompt": prompt, "completion": "ok"}) == [prompt, "ok"]
    assert texts({"data": [prompt, "ok"]}) == [prompt, "ok"]


def test_turns_in_a_string_that_begin_with_the_prompt_are_turns():
    assert texts({"prompt": "hi", "chosen": json.dumps(MESSAGES), "rejected": "x"}) == [
        "hi",
        "hello",
    ]


@pytest.mark.parametrize(
    ("pair", "prompt"),
    [
        ({"instruction": "", "input": "Q"}, "Q"),
        ({"question": "Q", "context": ["one", "two"]}, "Q\n\none\n\ntwo"),
    ],
)
def test_a_prompt_and_further_input_are_apart(pair, prompt):
    assert texts(pair | {"output": "A"}) == [prompt, "A"]


def test_a_history_that_is_no_list_is_no_history():
    reason, detail = drop({"instruction": "Q", "output": "A", "history": "earlier"})
    assert (reason, detail) == (Reason.MALFORMED, "history: not a list of pairs of texts")


def test_a_system_prompt_may_stand_beside_an_empty_one():
    item = {"messages": MESSAGES, "system": "", "system_prompt": "S"}
    assert texts(item) == ["S", "hi", "hello"]


@pytest.mark.parametrize("condition", ["", "\u200b", [], None])
def test_a_condition_that_shows_nothing_is_none(condition):
    assert one({"messages": MESSAGES, "condition": condition}).condition is None


@pytest.mark.parametrize(
    "item",
    [
        {"messages": MESSAGES, "label": False},
        {"prompt": "Q", "completion": "A", "label": 0},
        {"prompt": "Q", "completion": "A", "label": "False"},
    ],
)
def test_an_answer_that_is_labelled_as_bad_is_not_learnt(item):
    reason, detail = drop(item)
    assert (reason, detail[:6]) == (Reason.UNSUPPORTED, "label:")


@pytest.mark.parametrize("name", ["tools", "functions", "function_calls"])
def test_tools_of_a_turn_are_unsupported(name):
    system = {"role": "system", "content": "S", name: '[{"name": "f"}]'}
    assert drop({"messages": [system, *MESSAGES]}) == (Reason.UNSUPPORTED, f"turn 0: {name}")


def test_loss_weights_by_other_names():
    answer = MESSAGES[1] | {"loss_weight": 0.5}
    assert one({"messages": [MESSAGES[0], answer]}).turns[1].loss_weight == 0.5
    answer = MESSAGES[1] | {"loss_weight": 1, "weight": 0}
    reason, detail = drop({"messages": [MESSAGES[0], answer]})
    assert reason == Reason.MALFORMED
    assert "weight and loss_weight disagree" in detail
    reason, detail = drop({"messages": MESSAGES, "loss_weight": 0})
    assert (reason, detail) == (Reason.UNSUPPORTED, "loss_weight of an entire record")


@pytest.mark.parametrize("name", ["role", "text"])
def test_a_column_that_no_turn_has_is_named(name):
    turns = [{"role": "user"}] if name == "text" else [{"content": "hi"}]
    options = ReadOptions(columns={name: "own"})
    (record,) = records_of({"messages": turns}, source="x.json", index=0, options=options)
    assert record.detail.startswith(f"turn 0: no {name}: the turn has none of own, ")


def test_control_characters_in_names_of_unknown_keys_are_replaced():
    item = {"messages": MESSAGES, "\x1b[31mred\n": 1, "\ud800": 1}
    assert one(item).unknown_keys == ("\ufffd", "\ufffd[31mred\ufffd")


def test_a_weight_that_a_float32_cannot_tell_from_0_is_0():
    answer = MESSAGES[1] | {"weight": 1e-50}
    assert one({"messages": [MESSAGES[0], answer]}).turns[1].loss_weight == 0.0
