"""ChatGPT's data export and its share pages' data: what a reader of the page sees as text."""

import pytest

from ochat_ray.data.records import ReadOptions, records_of
from ochat_ray.schema import Conversation, Drop, Reason

CITE = "\ue200cite\ue202turn0search0\ue201"


def message(role, *parts, kind="text", **more):
    content = {"content_type": kind}
    content |= {"parts": list(parts)} if kind in ("text", "multimodal_text") else {}
    return {"author": {"role": role}, "content": content} | more


def user(text, **more):
    return message("user", text, **more)


def answer(text, slug="gpt-4o", **more):
    metadata = {"model_slug": slug} | more.pop("metadata", {})
    return message("assistant", text, metadata=metadata, **more)


def export(*messages, **more):
    """A record whose messages follow each other, below an empty root."""
    ids = [f"n{number}" for number in range(len(messages) + 1)]
    mapping = {
        name: {
            "id": name,
            "message": messages[number - 1] if number else None,
            "parent": ids[number - 1] if number else None,
            "children": ids[number + 1 : number + 2],
        }
        for number, name in enumerate(ids)
    }
    return {"title": "T", "mapping": mapping, "current_node": ids[-1], "id": "c"} | more


def read(item, **options):
    return list(records_of(item, source="x", index=0, options=ReadOptions(**options)))


def one(item, **options):
    (record,) = read(item, **options)
    assert isinstance(record, Conversation), record
    return record


def texts(*messages):
    return [turn.text for turn in one(export(*messages)).turns]


def drop(*messages):
    (record,) = read(export(*messages))
    assert isinstance(record, Drop), record
    return record.reason, record.detail


def test_an_export_is_the_path_to_the_current_message():
    found = one(export(user("q"), answer("a"), user("r"), answer("b")))
    assert [(turn.role, turn.text) for turn in found.turns] == [
        ("user", "q"),
        ("assistant", "a"),
        ("user", "r"),
        ("assistant", "b"),
    ]
    assert (found.id, found.title, found.model, found.left_out) == ("c", "T", "gpt-4o", ())


def test_answers_are_markdown_whatever_they_look_like():
    text = '<div class="markdown prose"><p>a</p></div>'
    for options in ({}, {"answers": "html"}):
        found = one(export(user("q"), answer(text)), **options)
        assert (found.turns[1].text, found.turns[1].html) == (text, False)


def node(name, parent, content, *children):
    return {"id": name, "parent": parent, "message": content, "children": list(children)}


BRANCHES = {
    "id": "c",
    "current_node": "b",
    "mapping": {
        "r": node("r", None, None, "q", "e"),
        "q": node("q", "r", user("q"), "a", "b"),
        "a": node("a", "q", answer("first")),
        "b": node("b", "q", answer("second")),
        "e": node("e", "r", user("edited"), "f"),
        "f": node("f", "e", answer("third")),
    },
}


def test_the_current_branch_is_read_and_the_others_are_counted():
    found = one(BRANCHES)
    assert [turn.text for turn in found.turns] == ["q", "second"]
    assert found.left_out == ("other branch", "other branch")


def test_all_branches_have_ids_of_their_own():
    found = read(BRANCHES, branches="all")
    assert {c.id: [t.text for t in c.turns] for c in found} == {
        "c#a": ["q", "first"],
        "c#b": ["q", "second"],
        "c#f": ["edited", "third"],
    }


@pytest.mark.parametrize("current", [None, "gone", 3])
def test_without_a_current_message_the_last_leaf_is_read(current):
    found = one(BRANCHES | {"current_node": current})
    assert [turn.text for turn in found.turns] == ["edited", "third"]


def test_a_path_alone_is_read_in_its_order():
    linear = [node("r", None, None), node("q", "r", user("q")), node("a", "q", answer("a"))]
    found = one({"linear_conversation": linear, "model": {"slug": "gpt-4"}, "current_node": "a"})
    assert [turn.text for turn in found.turns] == ["q", "a"]


def test_nodes_may_name_only_their_children():
    item = export(user("q"), answer("a"))
    for entry in item["mapping"].values():
        del entry["parent"]
    assert [turn.text for turn in one(item).turns] == ["q", "a"]


@pytest.mark.parametrize(
    ("slugs", "more", "model"),
    [
        (["gpt-4", "gpt-4"], {}, "gpt-4"),
        (["gpt-4", "o1"], {}, "gpt-4 + o1"),
        ([None, None], {"default_model_slug": "gpt-4o"}, "gpt-4o"),
        ([None, None], {"model": {"slug": "gpt-4", "title": "GPT-4"}}, "gpt-4"),
        ([None, None], {}, None),
    ],
)
def test_the_model_is_that_of_the_answers(slugs, more, model):
    first, second = slugs
    item = export(user("q"), answer("a", first), user("r"), answer("b", second), **more)
    assert one(item).model == model


# One answer in several messages

HIDDEN = {"is_visually_hidden_from_conversation": True}


def test_what_the_page_does_not_show_is_left_out_and_counted():
    found = one(
        export(
            message("system", "", metadata=HIDDEN),
            message("system", "hidden prompt", metadata=HIDDEN),
            message("user", kind="user_editable_context", metadata=HIDDEN),
            user("q"),
            message("assistant", kind="thoughts"),
            message("assistant", kind="code", recipient="python"),
            message("tool", kind="execution_output"),
            message("tool", "search results"),
            message("assistant", kind="reasoning_recap"),
            answer("a", end_turn=True),
        )
    )
    assert [turn.text for turn in found.turns] == ["q", "a"]
    assert found.left_out == (
        "hidden message", "hidden message", "thoughts", "tool call", "execution_output",
        "tool message", "reasoning_recap",
    )  # fmt: skip


def test_messages_of_one_answer_are_joined():
    tool = message("tool", "result")
    assert texts(user("q"), answer("I look.", end_turn=False), tool, answer("Found.")) == [
        "q",
        "I look.\n\nFound.",
    ]


def test_an_answer_that_was_continued_goes_on_where_it_was_cut():
    cut = {"finish_details": {"type": "max_tokens"}}
    assert texts(user("q"), answer("Hel", metadata=cut), answer("lo")) == ["q", "Hello"]


def test_an_answer_that_has_ended_is_not_joined():
    assert texts(user("q"), answer("a", end_turn=True), answer("b")) == ["q", "a", "b"]


def test_questions_in_a_row_stay_apart():
    assert texts(user("q"), user("r"), answer("a")) == ["q", "r", "a"]


def test_code_for_the_reader_is_a_block():
    code = message("assistant", kind="code", recipient="all")
    code["content"] |= {"language": "python", "text": "a = 1"}
    assert texts(user("q"), code) == ["q", "```python\na = 1\n```"]


def test_weight_0_is_an_answer_that_is_not_learnt():
    found = one(export(user("q", weight=1.0), answer("a", weight=0.0), user("r"), answer("b")))
    assert [turn.loss_weight for turn in found.turns] == [0.0, 0.0, 0.0, 1.0]


def test_weight_0_within_an_answer_is_left_out():
    for pair in (("no", 0.0), ("yes", 1.0)), (("yes", 1.0), ("no", 0.0)):
        found = one(export(user("q"), *(answer(text, weight=weight) for text, weight in pair)))
        assert [turn.text for turn in found.turns] == ["q", "yes"]
        assert found.left_out == ("message of weight 0",)


def test_a_visible_system_prompt_is_kept():
    assert texts(message("system", "Be kind."), user("q"), answer("a")) == ["Be kind.", "q", "a"]


def test_an_answer_of_many_messages_is_joined_in_one_go():
    path = [user("q"), *(answer("a" * 100) for _ in range(20_000))]
    assert len(texts(*path)[1]) == 20_000 * 100 + 19_999 * 2


# Marks of sources


@pytest.mark.parametrize(
    ("text", "shown", "count"),
    [
        (f"So it is {CITE}.", "So it is.", 1),
        (f"So it is.{CITE}", "So it is.", 1),
        (f"So it is. {CITE}", "So it is.", 1),
        (f"So {CITE}it is", "So it is", 1),
        (f"So. {CITE} And so on.", "So. And so on.", 1),
        (f"So. {CITE}{CITE}\nNext", "So.\nNext", 2),
        (f"So.{CITE} {CITE}\n\nNext", "So.\n\nNext", 2),
        ("A \ue200cite\ue202turn0search1\ue202turn1news2\ue201 b", "A b", 1),
        ("\ue200url\ue202Site\ue202https://a.b\ue201", "[Site](https://a.b)", 1),
        ('\ue200entity\ue202["city","Rome","in Italy"]\ue201 is old', "Rome is old", 1),
        ("\ue203Marked\ue204 text", "Marked text", 2),
        ("As written【4†source】.", "As written.", 1),
        ("As written【4:1†a.pdf】.", "As written.", 1),
        ("【注】 stays", "【注】 stays", 0),
        ("a  b ", "a  b ", 0),
        ("\ue200cite\ue202cut off", "cite\ue202cut off".replace("\ue202", ""), 2),
    ],
)
def test_marks_of_sources_are_taken_out_and_counted(text, shown, count):
    found = one(export(user("q"), answer(text)))
    assert found.turns[1].text == shown
    assert found.left_out == ("citation mark",) * count


def test_a_text_of_marks_alone_is_taken_out_in_one_pass():
    found = one(export(user("q"), answer("\ue201" * 300_000 + "x")))
    assert found.turns[1].text == "x"


def test_a_user_s_text_keeps_its_marks():
    assert texts(user(f"why {CITE}?"), answer("a"))[0] == f"why {CITE}?"


# What cannot be understood without more than text

IMAGE = {"content_type": "image_asset_pointer", "asset_pointer": "file-service://a"}


@pytest.mark.parametrize(
    ("messages", "detail"),
    [
        ([message("user", IMAGE, "what is it?", kind="multimodal_text")], "image_asset_pointer"),
        ([user("sum up", metadata={"attachments": [{"name": "a.pdf"}]})], "attachments"),
        ([user("draw"), message("tool", IMAGE, kind="multimodal_text")], "image_asset_pointer"),
        ([user("draw"), message("assistant", "{}", recipient="dalle.text2im")], "dalle.text2im"),
        ([user("write"), message("assistant", "{}", recipient="canmore.create_textdoc")], "canmor"),
        ([user("q"), message("assistant", kind="hologram")], "content type hologram"),
    ],
)
def test_pictures_files_and_canvases_are_unsupported_by_name(messages, detail):
    reason, found = drop(*messages)
    assert reason == Reason.UNSUPPORTED
    assert detail in found


def test_speech_is_its_transcript():
    parts = [
        {"content_type": "audio_transcription", "text": "spoken"},
        {"content_type": "audio_asset_pointer", "asset_pointer": "file"},
    ]
    found = one(export(message("user", *parts, kind="multimodal_text"), answer("a")))
    assert found.turns[0].text == "spoken"
    assert found.left_out == ("audio_asset_pointer",)


@pytest.mark.parametrize(
    ("item", "detail"),
    [
        ({"mapping": {}}, "no messages"),
        ({"mapping": {"a": node("a", "b", user("q")), "b": node("b", "a", user("r"))}}, "cycle"),
        (export(message("wizard", "x")), "unknown role 'wizard'"),
        (export(user("q"), answer("a", weight="x")), "message.weight"),
        (export(user("\ud800")), "surrogate"),
    ],
)
def test_a_tree_that_is_none_says_why(item, detail):
    (record,) = read(item)
    assert record.reason == Reason.MALFORMED
    assert detail in record.detail


def test_a_tree_of_too_many_branches_is_too_large():
    mapping = {"r": node("r", None, user("q"))}
    mapping |= {f"a{n}": node(f"a{n}", "r", answer("a")) for n in range(2000)}
    (record,) = read({"id": "c", "mapping": mapping}, branches="all")
    assert record.reason == Reason.TOO_LARGE


def test_unknown_keys_are_named_by_where_they_are():
    item = export(user("q", channel="x"), answer("a", metadata={"request_id": "1"}), gizmo_id="g")
    assert one(item).unknown_keys == ("gizmo_id", "message.channel", "message.metadata.request_id")
