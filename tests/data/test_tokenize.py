"""Rows of the token table and their digest."""

from itertools import permutations

from ochat_ray.data.tokenize import DIGEST_MODULUS, TokenRow, table_digest, tokenize
from ochat_ray.schema import Conversation, Turn
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
