"""Rows of the token table and their digest."""

from dataclasses import replace
from itertools import permutations

from ochat_ray.data.tokenize import DIGEST_MODULUS, TokenRow, table_digest, tokenize
from ochat_ray.schema import Conversation, ModelClass, Turn
from ochat_ray.template import encode


def conversation(answer):
    turns = (Turn(role="user", text="hello"), Turn(role="assistant", text=answer))
    return Conversation(id=answer, source="f", turns=turns)


def row(id, ids=(1, 2)):
    return TokenRow(id=id, input_ids=list(ids), loss_weights=[0.0, 1.0], cut=0)


def test_a_row_is_the_encoding_cut_at_the_context(tokenizer):
    (whole,) = tokenize(
        [conversation("fine")], model_type="openchat", tokenizer=tokenizer, max_length=1000
    )
    ids, weights = encode(conversation("fine").turns, "openchat", tokenizer)
    assert (whole.input_ids, whole.loss_weights, whole.cut) == (ids, weights, 0)
    (cut,) = tokenize(
        [conversation("fine")], model_type="openchat", tokenizer=tokenizer, max_length=5
    )
    assert (cut.input_ids, cut.cut, cut.supervised) == (ids[:5], len(ids) - 5, 0)


def test_a_class_multiplies_the_weights_and_writes_its_condition(tokenizer):
    classes = {
        "gpt-4": ModelClass(condition="GPT4"),
        "gpt-3.5": ModelClass(weight=0.1, condition="GPT3"),
    }
    labels = ["Model: GPT-4", "Model: Default (GPT-3.5)", None]
    rows = tokenize(
        [replace(conversation("fine"), model=label) for label in labels],
        model_type="openchat",
        tokenizer=tokenizer,
        max_length=1000,
        classes=classes,
    )
    answer = tokenizer.encode("fine", add_special_tokens=False)
    for row, condition, weight in zip(rows, ["GPT4", "GPT3", ""], [1.0, 0.1, 1.0], strict=True):
        ids, _ = encode(conversation("fine").turns, "openchat", tokenizer, condition=condition)
        assert row.input_ids == ids
        supervised = len(answer) + 1
        assert row.loss_weights == [0.0] * (len(ids) - supervised) + [weight] * supervised
        assert row.supervised == supervised


def test_the_digest_does_not_depend_on_order_or_parts():
    rows = [("train", row("a")), ("eval", row("b")), ("train", row("c"))]
    whole = table_digest(rows)
    assert {table_digest(order) for order in permutations(rows)} == {whole}
    parts = table_digest(rows[:1]) + table_digest(rows[1:])
    assert parts % DIGEST_MODULUS == whole


def test_the_digest_sees_every_difference():
    rows = [
        [("train", row("a"))],
        [("eval", row("a"))],
        [("train", row("b"))],
        [("train", row("a", (1, 3)))],
        [("train", row("a")), ("train", row("a"))],
        [],
    ]
    assert len({table_digest(r) for r in rows}) == len(rows)
