"""Decoded records of every format: turns, weights, columns, HTML."""

import json
import math
import random

import pytest

from ochat_ray.schema import Drop, Reason
from tests.data.reading import (
    BOX,
    MESSAGES,
    READ,
    TURNS,
    drop,
    one,
    read_record,
    texts,
)

TREE_OF_TWO = {
    "a": {"message": {"author": {"role": "user"}, "content": {"parts": ["hi"]}}},
    "b": {
        "parent": "a",
        "message": {"author": {"role": "assistant"}, "content": {"parts": ["hello"]}},
    },
}

# Lists of turns


@pytest.mark.parametrize(
    "item",
    [
        {"conversations": TURNS},
        {"items": TURNS},
        {"turns": [{"role": "user", "text": "hi"}, {"role": "assistant", "text": "hello"}]},
        {"messages": MESSAGES},
        {"conversation": MESSAGES},
        {"data": ["hi", "hello"]},
        {"conversation": ["hi", "hello"]},
        {"conversations": {"from": ["human", "gpt"], "value": ["hi", "hello"]}},
        {"conversations": {"from": ["human", "gpt"], "value": ["hi", "hello"], "weight": None}},
        {"conversations": json.dumps(TURNS)},
        {"messages": json.dumps(MESSAGES)},
        {"conversations": [json.dumps(turn) for turn in TURNS]},
        {"conversations": [list(turn.items()) for turn in TURNS]},
        {"conversations": TURNS, "items": None, "messages": None, "turns": []},
        {"conversations": [], "messages": MESSAGES},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "h"}, {"text": "i"}]},
                      {"role": "assistant",
                       "content": [{"type": "output_text", "text": "hello"}]}]},
        {"messages": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
                      {"role": "assistant", "content": ["hello"]}]},
        {"contents": [{"role": "user", "parts": [{"text": "hi"}]},
                      {"role": "model", "parts": [{"text": "hello"}]}]},
        {"prompt": "hi", "completion": "hello"},
        {"prompt": MESSAGES[:1], "completion": MESSAGES[1:]},
        {"prompt": MESSAGES[:1], "completion": "hello"},
        {"prompt": "hi", "completion": MESSAGES[1]},
        {"prompt": {"role": ["user"], "content": ["hi"]}, "completion": "hello"},
        {"prompt": "hi", "response": "hello"},
        {"instruction": "hi", "output": "hello"},
        {"instruction": "hi", "input": "", "output": "hello"},
        {"instruction": "hi", "input": None, "output": "hello"},
        {"instruction": "hi", "context": " ", "response": "hello"},
        {"question": "hi", "answer": "hello"},
        {"input": "hi", "output": "hello"},
        {"prompt": "hi", "chosen": "hello", "rejected": "bye"},
        {"prompt": "hi", "chosen": MESSAGES, "rejected": MESSAGES},
        {"chosen": MESSAGES, "rejected": MESSAGES},
        {"conversations": TURNS[:1], "chosen": TURNS[1], "rejected": [TURNS[1]]},
        {"prompt": MESSAGES[:1], "chosen": MESSAGES, "rejected": MESSAGES},
        {"prompt": "hi", "messages": MESSAGES},
        {"messages": MESSAGES, "chosen": MESSAGES, "rejected": MESSAGES},
        MESSAGES,
        TURNS,
    ],
)  # fmt: skip
def test_one_conversation_in_every_shape(item):
    assert texts(item) == READ


@pytest.mark.parametrize(
    "item",
    [
        {"data": [{"id": "r", "conversations": TURNS}, {"id": "r", "conversations": TURNS}]},
        {"data": [{"instruction": "hi", "output": "hello"}, {"prompt": "hi", "response": "hello"}]},
        {"conversations": [{"id": 1, "messages": MESSAGES}, {"id": 2, "messages": MESSAGES}]},
        {"rows": [{"row_idx": 0, "row": {"messages": MESSAGES}}, {"row": {"messages": MESSAGES}}]},
        {"id": ["a", "b"], "conversations": [TURNS, TURNS]},
        {"messages": [MESSAGES, MESSAGES]},
        {"id": ["a", "b"], "data": [["hi", "hello"], ["hi", "hello"]]},
        {"prompt": ["hi", "hi"], "completion": ["hello", "hello"]},
        {"train": [{"messages": MESSAGES}], "test": [{"messages": MESSAGES}]},
        {"whatever": [{"mapping": TREE_OF_TWO}, {"mapping": TREE_OF_TWO}]},
        {"a": {"messages": MESSAGES}, "b": {"conversations": TURNS}},
        {"store": {"version": 3, "sessions": [{"messages": MESSAGES}, {"messages": MESSAGES}]}},
        {"sessions": [{"topic": "T", "messages": MESSAGES}, {"topic": "T", "messages": MESSAGES}]},
    ],
)
def test_records_in_a_record_and_columns(item):
    found = read_record(item)
    assert [[(t.role, t.text) for t in c.turns] for c in found] == [READ, READ]


def test_records_in_a_record_without_ids_have_names_of_their_own():
    record = {"messages": MESSAGES}
    assert [
        c.id for c in read_record({"data": [record, record, 3]} | {"data": [record, record]})
    ] == [
        "x.json#7.0",
        "x.json#7.1",
    ]


def test_one_bad_record_in_a_record_costs_only_itself():
    found = read_record({"data": [{"messages": MESSAGES}, 3, {"id": "b", "messages": [1]}, None]})
    assert [(type(record).__name__, record.id) for record in found] == [
        ("Conversation", "x.json#7.0"),
        ("Drop", "x.json#7.1"),
        ("Drop", "b"),
        ("Drop", "x.json#7.3"),
    ]


def test_records_by_name_have_it_as_their_id():
    found = read_record({"a": {"messages": MESSAGES}, "b": {"id": "own", "messages": MESSAGES}})
    assert [c.id for c in found] == ["a", "own"]


def test_keys_beside_the_records_are_counted():
    found = read_record({"version": 2, "note": "", "data": [{"messages": MESSAGES, "tag": 1}]})
    assert found[0].unknown_keys == ("file.version", "tag")


def test_records_beside_turns_are_a_key_like_others():
    found = one({"messages": MESSAGES, "alternatives": [{"messages": MESSAGES}]})
    assert found.unknown_keys == ("alternatives",)


def test_columns_of_other_names_in_a_record():
    rows = [{"dialog": DIALOG}, {"dialog": DIALOG}]
    columns = {"conversations": "dialog", "role": "speaker", "text": "utterance"}
    for item in ({"data": rows}, {"dialog": [DIALOG, DIALOG]}):
        found = read_record(item, columns=columns)
        assert [[(t.role, t.text) for t in c.turns] for c in found] == [READ, READ]


@pytest.mark.parametrize("text", ["[1, 2]", '["a"]', '{"a": 1}', '[{"a": 1}]', "[]", "{}", "[x"])
def test_a_text_that_is_json_stays_a_text(text):
    assert texts({"prompt": text, "completion": text}) == [("user", text), ("assistant", text)]
    assert texts({"instruction": "hi", "output": text})[1] == ("assistant", text)
    assert texts({"data": [text, text]}) == [("user", text), ("assistant", text)]
    assert texts({"messages": [MESSAGES[0], {"role": "assistant", "content": text}]})[1][1] == text


def test_a_list_of_turns_named_data_is_one_conversation():
    assert texts({"data": MESSAGES}) == READ


@pytest.mark.parametrize(
    ("role", "expected"),
    [
        *((name, "user") for name in ("human", "user", "Human", "prompter", "user_1", "human 2")),
        *(
            (name, "assistant")
            for name in ("gpt", "chatgpt", "bard", "bing", "assistant", "model", "bot", "ai")
        ),
        ("system", "system"),
        ("developer", "system"),
        (" USER ", "user"),
    ],
)
def test_roles(role, expected):
    turns = [{"from": role, "value": "x"}, *TURNS]
    assert texts({"conversations": turns})[0] == (expected, "x")


@pytest.mark.parametrize(
    "role", ["tool", "function", "function_call", "observation", "ipython", "tool_call"]
)
def test_roles_of_tools_are_unsupported_by_name(role):
    turns = [*TURNS, {"from": role, "value": "{}"}]
    assert drop({"conversations": turns}) == (Reason.UNSUPPORTED, f"turn 2: role {role}")


@pytest.mark.parametrize(
    ("item", "detail"),
    [
        (3, "must be an object, not int"),
        (None, "must be an object, not NoneType"),
        ([], "must be an object, not list"),
        ({"a": 1}, "no list named"),
        ({"conversations": "x"}, "no list named"),
        ({"conversations": "[broken"}, "no list named"),
        ({"text": "a whole document"}, "no list named"),
        ({"conversations": [1]}, "turn 0: not an object"),
        ({"conversations": [None]}, "turn 0: not an object"),
        ({"conversations": ["hi", {"from": "gpt"}]}, "some of the turns are texts"),
        ({"conversations": [{"from": "robot", "value": ""}]}, "turn 0: unknown role 'robot'"),
        ({"conversations": [{"from": ["human"], "value": ""}]}, "unknown role"),
        ({"conversations": [{"value": "hi"}]}, "turn 0: no role"),
        ({"conversations": [{"from": "human"}]}, "turn 0: no text"),
        ({"conversations": [{"from": "human", "value": 3}]}, "turn 0: no text"),
        ({"conversations": [{"from": "human", "value": []}]}, "turn 0: no text"),
        ({"conversations": [{"from": "human", "value": "\ud83d"}]}, "surrogate"),
        ({"conversations": {"from": ["human", "gpt"], "value": ["hi"]}}, "different lengths"),
        ({"messages": [{"role": "assistant", "content": None}]}, "turn 0: no text"),
        ({"messages": MESSAGES, "system": "\ud83d"}, "surrogate"),
        ({"messages": MESSAGES, "system": 3}, "system: no text"),
        ({"messages": MESSAGES, "condition": 3}, "condition: a condition must be a text"),
        ({"prompt": "hi"}, "no completion"),
        ({"completion": "hi"}, "completion without a prompt"),
        ({"prompt": 3, "completion": "hi"}, "the prompt is not text"),
        ({"instruction": "a", "output": "b", "history": ["x"]}, "history"),
    ],
)
def test_a_record_that_is_no_conversation_says_why(item, detail):
    reason, found = drop(item)
    assert reason == Reason.MALFORMED
    assert detail in found


def test_a_drop_has_the_record_s_own_id():
    (record,) = read_record({"id": "mine", "conversations": [1]})
    assert record.id == "mine"


def test_a_conversation_beyond_all_measure_is_dropped():
    turns = [{"from": "human", "value": "x" * 9_000_000}, TURNS[1]]
    assert drop({"conversations": turns})[0] == Reason.TOO_LARGE


# Pairs


def test_further_input_stands_below_the_instruction():
    item = {"instruction": "Sum up.", "input": "A long text.", "output": "Short."}
    assert texts(item) == [("user", "Sum up.\n\nA long text."), ("assistant", "Short.")]
    item = {"question": "Who?", "context": "B did it.", "response": "B"}
    assert texts(item)[0] == ("user", "Who?\n\nB did it.")


def test_history_and_system_of_an_instruction():
    item = {
        "instruction": "c",
        "output": "d",
        "history": [["a", "b"]],
        "system": "Be kind.",
        "id": 3,
        "model": "m",
    }
    found = one(item)
    assert [turn.text for turn in found.turns] == ["Be kind.", "a", "b", "c", "d"]
    assert (found.id, found.model, found.unknown_keys) == ("3", "m", ())


def test_a_system_turn_may_be_the_prompt():
    system = [{"role": "system", "content": "Be kind."}]
    item = {"prompt": system, "completion": MESSAGES}
    assert texts(item) == [("system", "Be kind."), *READ]
    item = {"prompt": "hi", "chosen": [*system, *MESSAGES], "rejected": [*system, *MESSAGES]}
    assert texts(item) == [("system", "Be kind."), *READ]


def test_a_prompt_that_the_conversation_does_not_begin_with_is_not_lost():
    assert [text for _, text in texts({"prompt": "bye", "chosen": MESSAGES})] == [
        "bye",
        "hi",
        "hello",
    ]


def test_the_answer_not_chosen_is_counted_as_a_key_that_is_not_read():
    item = {"prompt": "hi", "chosen": "hello", "rejected": "bye"}
    assert one(item).unknown_keys == ("rejected",)


@pytest.mark.parametrize(
    ("item", "detail"),
    [
        ({"prompt": "a", "completion": "b", "label": False}, "label"),
        ({"messages": MESSAGES, "kto_tag": False}, "kto_tag"),
        ({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "c"}, "transcript in one string"),
        ({"message_id": "a", "parent_id": "b", "text": "c", "role": "prompter"}, "of a tree"),
        ({"messages": MESSAGES, "weight": 0.5}, "weight of an entire record"),
    ],
)
def test_what_would_teach_something_else_is_unsupported(item, detail):
    reason, found = drop(item)
    assert reason == Reason.UNSUPPORTED
    assert detail in found


# Columns of other names

DIALOG = [{"speaker": "user", "utterance": "hi"}, {"speaker": "bot", "utterance": "hello"}]


def test_columns_of_other_names():
    columns = {"conversations": "dialog", "role": "speaker", "text": "utterance", "id": "key"}
    found = one({"dialog": DIALOG, "key": "k"}, columns=columns)
    assert [(turn.role, turn.text) for turn in found.turns] == READ
    assert (found.id, found.unknown_keys) == ("k", ())


def test_the_user_s_own_names_come_first():
    columns = {"conversations": "dialog", "text": "clean", "weight": "w"}
    turns = [TURNS[0] | {"clean": "HI", "w": 1}, TURNS[1] | {"clean": "HELLO"}]
    found = one({"dialog": turns, "conversations": TURNS}, columns=columns)
    assert [turn.text for turn in found.turns] == ["HI", "HELLO"]
    assert found.turns[0].weight == 1.0
    assert found.unknown_keys == ("conversations", "turn.value")


def test_columns_of_texts_and_of_pairs():
    assert texts({"dialog": ["hi", "hello"]}, columns={"conversations": "dialog"}) == READ
    columns = {"prompt": "ask", "completion": "reply"}
    assert texts({"ask": "hi", "reply": "hello"}, columns=columns) == READ


# HTML


def test_answers_of_a_page_are_looked_at_one_by_one():
    items = [TURNS[0], {"from": "gpt", "value": BOX}, TURNS[0], TURNS[1]]
    found = one({"items": items}, page=True)
    assert [turn.html for turn in found.turns] == [False, True, False, False]


def test_messages_are_never_html_unless_the_user_says_so():
    item = {"messages": [MESSAGES[0], {"role": "assistant", "content": BOX}]}
    assert [turn.html for turn in one(item).turns] == [False, False]
    assert [turn.html for turn in one(item, answers="html").turns] == [False, True]


def test_a_user_s_html_is_no_answer():
    turns = [{"from": "human", "value": BOX}, {"from": "gpt", "value": BOX}]
    assert [turn.html for turn in one({"conversations": turns}).turns] == [False, True]
    found = one({"conversations": turns}, answers="markdown")
    assert [turn.html for turn in found.turns] == [False, False]


@pytest.mark.parametrize(
    ("item", "page", "origin"),
    [
        ({"items": TURNS}, True, "page"),
        ({"conversations": TURNS}, False, "sharegpt"),
        ({"items": TURNS}, False, "sharegpt"),
        ({"conversations": MESSAGES}, False, "other"),
        ({"messages": MESSAGES}, False, "other"),
        ({"mapping": TREE_OF_TWO}, True, "other"),
    ],
)
def test_only_sharegpt_s_records_can_have_come_through_a_browser_extension(item, page, origin):
    assert one(item, page=page).origin == origin


# Anything else

KEYS = (
    "conversations items messages data prompt completion instruction output mapping current_node "
    "linear_conversation chat_messages replies text role from value content author parts message "
    "parent children id weight train condition title model type system tools sender metadata "
    "content_type rank chosen rejected \ud800"
).split()
SCALARS = [
    None, True, False, 0, 1.5, -1, math.nan, 10**30, "", "hi", "[]", "[1]", '{"from": "gpt"}',
    "user", "assistant", "system", "a", "text", "b\ud801", "\ud800", "\ue200cite\ue201", "<p>a</p>",
]  # fmt: skip


def anything(rng, depth):
    kind = rng.random()
    if depth == 0 or kind < 0.3:
        return rng.choice(SCALARS)
    if kind < 0.6:
        return [anything(rng, depth - 1) for _ in range(rng.randrange(4))]
    return {rng.choice(KEYS): anything(rng, depth - 1) for _ in range(rng.randrange(6))}


def strings_of(record):
    if isinstance(record, Drop):
        return [record.id, record.detail]
    texts = [turn.text for turn in record.turns]
    labels = [record.id, record.title or "", record.model or "", record.condition or ""]
    return [*texts, *labels, *record.unknown_keys, *record.left_out]


def test_no_record_raises_and_all_text_is_utf_8():
    rng = random.Random(7)
    kinds = set()
    for _ in range(4_000):
        item = {rng.choice(KEYS): anything(rng, 5) for _ in range(5)}
        for branches in ("current", "all"):
            for record in read_record(item, branches=branches, page=rng.random() < 0.1):
                kinds.add(getattr(record, "reason", "kept"))
                assert record.id
                assert "".join(strings_of(record)).encode()
    assert {"kept", Reason.MALFORMED, Reason.UNSUPPORTED} <= kinds
