"""Claude's data export."""

import pytest

from ochat_ray.data.records import ReadOptions, records_of
from ochat_ray.schema import Reason


def message(sender, text, **more):
    return {"sender": sender, "text": text, "content": [{"type": "text", "text": text}]} | more


def export(*messages, **more):
    return {"uuid": "c", "name": "T", "chat_messages": list(messages)} | more


def read(item, **options):
    return list(records_of(item, source="x", index=0, options=ReadOptions(**options)))


def test_an_export_is_read():
    (found,) = read(export(message("human", "q"), message("assistant", "a"), summary="s"))
    assert [(turn.role, turn.text, turn.html) for turn in found.turns] == [
        ("user", "q", False),
        ("assistant", "a", False),
    ]
    assert (found.id, found.title, found.model) == ("c", "T", "claude")
    assert found.unknown_keys == ("summary",)


def test_older_exports_have_the_text_alone():
    (found,) = read(
        export(message("human", "q", content=[]), message("assistant", "a", content=None))
    )
    assert [turn.text for turn in found.turns] == ["q", "a"]


def test_thoughts_are_left_out_and_blocks_joined():
    blocks = [
        {"type": "thinking", "thinking": "hm"},
        {"type": "text", "text": "Rome is "},
        {"type": "text", "text": "old."},
        {"type": "thinking", "thinking": "hm"},
        {"type": "text", "text": "So it is."},
    ]
    (found,) = read(export(message("human", "q"), message("assistant", "", content=blocks)))
    assert found.turns[1].text == "Rome is old.\n\nSo it is."
    assert found.left_out == ("thinking", "thinking")


@pytest.mark.parametrize(
    ("more", "detail"),
    [
        ({"attachments": [{"file_name": "a"}]}, "attachments"),
        ({"files": [{"file_name": "a"}]}, "files"),
        ({"content": [{"type": "tool_use", "name": "artifacts"}]}, "content block tool_use"),
        ({"content": [{"type": "tool_result"}]}, "content block tool_result"),
    ],
)
def test_files_and_tools_are_unsupported_by_name(more, detail):
    (found,) = read(export(message("human", "q", **more)))
    assert (found.reason, found.detail) == (Reason.UNSUPPORTED, detail)


def test_branches():
    root = "00000000-0000-4000-8000-000000000000"
    item = export(
        message("human", "q", uuid="1", parent_message_uuid=root),
        message("assistant", "a", uuid="2", parent_message_uuid="1"),
        message("assistant", "b", uuid="3", parent_message_uuid="1"),
    )
    (found,) = read(item)
    assert [turn.text for turn in found.turns] == ["q", "b"]
    assert found.left_out == ("other branch",)
    assert [c.id for c in read(item, branches="all")] == ["c#2", "c#3"]
    (found,) = read(item | {"current_leaf_message_uuid": "2"})
    assert [turn.text for turn in found.turns] == ["q", "a"]


def test_an_empty_export_is_an_empty_conversation():
    (found,) = read(export())
    assert found.turns == ()
