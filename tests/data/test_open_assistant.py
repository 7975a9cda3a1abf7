"""OpenAssistant's trees: the best-ranked path, or all."""

from tests.data.reading import one, read_record, texts


def message(name, text, *replies, role="assistant", **more):
    return {"message_id": name, "text": text, "role": role, "replies": list(replies), **more}


TREE = {
    "message_tree_id": "t",
    "tree_state": "ready_for_export",
    "prompt": message(
        "p",
        "q",
        message("a", "worse", rank=1),
        message("b", "best", message("c", "more?", message("d", "end"), role="prompter"), rank=0),
        message("x", "gone", message("y", "also gone", role="prompter"), deleted=True, rank=2),
        role="prompter",
        lang="en",
    ),
}


def test_the_best_ranked_path_of_a_tree():
    found = one(TREE)
    assert [turn.text for turn in found.turns] == ["q", "best", "more?", "end"]
    assert [turn.role for turn in found.turns] == ["user", "assistant"] * 2
    assert found.id == "t"
    assert found.unknown_keys == ("tree_state", "turn.lang")
    assert sorted(found.left_out) == ["deleted message", "other branch"]


def test_all_paths_of_a_tree():
    found = read_record(TREE, branches="all")
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
