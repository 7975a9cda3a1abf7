"""Decoded records of every format: turns, weights, system prompts, and what nothing reads."""

import json
import math
import random

import pytest

from ochat_ray.data.records import ReadOptions, records_of
from ochat_ray.schema import Conversation, Drop, Reason

TURNS = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]
MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
READ = [("user", "hi"), ("assistant", "hello")]
BOX = '<div class="markdown prose"><p>Yes</p></div>'


def read(item, *, page=False, **options):
    return list(
        records_of(item, source="a/x.json", index=7, options=ReadOptions(**options), page=page)
    )


def one(item, **options):
    (record,) = read(item, **options)
    assert isinstance(record, Conversation), record
    return record


def texts(item, **options):
    return [(turn.role, turn.text) for turn in one(item, **options).turns]


def weights(item):
    return [turn.loss_weight for turn in one(item).turns]


def drop(item, **options):
    (record,) = read(item, **options)
    assert isinstance(record, Drop), record
    return record.reason, record.detail


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
    found = read(item)
    assert [[(t.role, t.text) for t in c.turns] for c in found] == [READ, READ]


def test_records_in_a_record_without_ids_have_names_of_their_own():
    record = {"messages": MESSAGES}
    assert [c.id for c in read({"data": [record, record, 3]} | {"data": [record, record]})] == [
        "x.json#7.0",
        "x.json#7.1",
    ]


def test_one_bad_record_in_a_record_costs_only_itself():
    found = read({"data": [{"messages": MESSAGES}, 3, {"id": "b", "messages": [1]}, None]})
    assert [(type(record).__name__, record.id) for record in found] == [
        ("Conversation", "x.json#7.0"),
        ("Drop", "x.json#7.1"),
        ("Drop", "b"),
        ("Drop", "x.json#7.3"),
    ]


def test_records_by_name_have_it_as_their_id():
    found = read({"a": {"messages": MESSAGES}, "b": {"id": "own", "messages": MESSAGES}})
    assert [c.id for c in found] == ["a", "own"]


def test_keys_beside_the_records_are_counted():
    found = read({"version": 2, "note": "", "data": [{"messages": MESSAGES, "tag": 1}]})
    assert found[0].unknown_keys == ("file.version", "tag")


def test_records_beside_turns_are_a_key_like_others():
    found = one({"messages": MESSAGES, "alternatives": [{"messages": MESSAGES}]})
    assert found.unknown_keys == ("alternatives",)


def test_columns_of_other_names_in_a_record():
    rows = [{"dialog": DIALOG}, {"dialog": DIALOG}]
    columns = {"conversations": "dialog", "role": "speaker", "text": "utterance"}
    for item in ({"data": rows}, {"dialog": [DIALOG, DIALOG]}):
        found = read(item, columns=columns)
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
        ({"prompt": 3, "completion": "hi"}, "the prompt is no text"),
        ({"instruction": "a", "output": "b", "history": ["x"]}, "history"),
    ],
)
def test_a_record_that_is_no_conversation_says_why(item, detail):
    reason, found = drop(item)
    assert reason == Reason.MALFORMED
    assert detail in found


def test_a_drop_has_the_record_s_own_id():
    (record,) = read({"id": "mine", "conversations": [1]})
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
        "instruction": "c", "output": "d", "history": [["a", "b"]], "system": "Be kind.",
        "id": 3, "model": "m",
    }  # fmt: skip
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
        "bye", "hi", "hello",
    ]  # fmt: skip


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
        ({"messages": MESSAGES, "weight": 0.5}, "weight of a whole record"),
    ],
)
def test_what_would_teach_something_else_is_unsupported(item, detail):
    reason, found = drop(item)
    assert reason == Reason.UNSUPPORTED
    assert detail in found


# Meaning beside the text


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
        ("system", 0.0), ("user", 0.0), ("assistant", 0.0), ("user", 0.0), ("assistant", 0.25),
    ]  # fmt: skip
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
        "language", "redacted", "turn.content.annotations", "turn.name", "turn.reasoning_content",
        "turn.timestamp",
    )  # fmt: skip


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


# OpenAssistant's trees


def message(name, text, *replies, role="assistant", **more):
    return {"message_id": name, "text": text, "role": role, "replies": list(replies), **more}


TREE = {
    "message_tree_id": "t",
    "tree_state": "ready_for_export",
    "prompt": message(
        "p", "q",
        message("a", "worse", rank=1),
        message("b", "best", message("c", "more?", message("d", "end"), role="prompter"), rank=0),
        message("x", "gone", message("y", "also gone", role="prompter"), deleted=True, rank=2),
        role="prompter", lang="en",
    ),
}  # fmt: skip


def test_the_best_ranked_path_of_a_tree():
    found = one(TREE)
    assert [turn.text for turn in found.turns] == ["q", "best", "more?", "end"]
    assert [turn.role for turn in found.turns] == ["user", "assistant"] * 2
    assert found.id == "t"
    assert found.unknown_keys == ("tree_state", "turn.lang")
    assert sorted(found.left_out) == ["deleted message", "other branch"]


def test_all_paths_of_a_tree():
    found = read(TREE, branches="all")
    assert {c.id: [t.text for t in c.turns] for c in found} == {
        "t#d": ["q", "best", "more?", "end"],
        "t#a": ["q", "worse"],
    }


def test_a_tree_may_be_the_record_itself_and_replies_may_have_no_rank():
    tree = message("p", "q", message("a", "first"), message("b", "second"), role="prompter")
    assert [text for _, text in texts(tree)] == ["q", "first"]


def test_a_deep_tree_is_no_recursion():
    tree = message("0", "end")
    for number in range(1, 5000):
        tree = message(str(number), "x", tree, role="prompter" if number % 2 else "assistant")
    assert len(one(tree).turns) == 5000


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
            for record in read(item, branches=branches, page=rng.random() < 0.1):
                kinds.add(getattr(record, "reason", "kept"))
                assert record.id
                assert "".join(strings_of(record)).encode()
    assert {"kept", Reason.MALFORMED, Reason.UNSUPPORTED} <= kinds
