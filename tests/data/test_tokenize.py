"""Rows of the token table and their digest."""

from dataclasses import replace
from itertools import permutations

import pytest

from ochat_ray.data.tokenize import DIGEST_MODULUS, TokenRow, table_digest, tokenize
from ochat_ray.schema import Conversation, ModelClass, Turn
from ochat_ray.tokenization.template import encode


def conversation(answer):
    turns = (Turn(role="user", text="hello"), Turn(role="assistant", text=answer))
    return Conversation(id=answer, source="f", turns=turns)


def row(id, ids=(1, 2)):
    return TokenRow(id=id, input_ids=list(ids), loss_weights=[0.0, 1.0])


def samples(conversation, tokenizer, max_length, **options):
    """The samples' ids and weights by id, and the rest."""
    (result,) = tokenize(
        [conversation],
        model_type="openchat",
        tokenizer=tokenizer,
        max_length=max_length,
        **options,
    )
    return {row.id: (row.input_ids, row.loss_weights) for row in result.samples}, result


def test_a_sample_is_the_encoding_cut_at_the_context(tokenizer):
    ids, weights = encode(conversation("fine").turns, "openchat", tokenizer)
    found, result = samples(conversation("fine"), tokenizer, 1000)
    assert (found, result.cut, result.length) == ({"fine": (ids, weights)}, 0, len(ids))
    n = len(ids) - 2
    found, result = samples(conversation("fine"), tokenizer, n)
    assert (found, result.cut) == ({"fine": (ids[:n], weights[:n])}, 2)
    found, result = samples(conversation("fine"), tokenizer, 5)
    assert (found, result.samples, result.length) == ({}, (), len(ids))


SYSTEM = Turn(role="system", text="Be brief, please.")


def rounds(*texts):
    return [
        (Turn(role="user", text=text), Turn(role="assistant", text=f"re {text}")) for text in texts
    ]


def joined(pairs, system=()):
    turns = (*system, *(turn for pair in pairs for turn in pair))
    return Conversation(id="c", source="f", turns=turns)


def tokens_of(turns, tokenizer, condition=""):
    return encode(turns, "openchat", tokenizer, condition=condition)


@pytest.mark.parametrize("system", [(), (SYSTEM,)])
@pytest.mark.parametrize("condition", ["", "GPT4"])
def test_split_pieces_are_the_encoding_of_their_own_turns(tokenizer, system, condition):
    pairs = rounds("one", "two two two", "three", "four four four four", "five")
    whole = replace(joined(pairs, system), condition=condition or None)
    lengths = [len(tokens_of((*system, *pair), tokenizer, condition)[0]) for pair in pairs]
    head = len(tokens_of(system, tokenizer, condition)[0])
    two = lengths[0] + lengths[1] - head
    assert two < sum(lengths[:3]) - 2 * head
    found, result = samples(whole, tokenizer, two, long="split")
    # Greedy: as many rounds as fit into each sample.
    expected, piece = [], []
    for pair, length in zip(pairs, lengths, strict=True):
        used = sum(n - head for p, n in zip(pairs, lengths, strict=True) if p in piece)
        if piece and head + used + length - head > two:
            expected, piece = [*expected, piece], []
        piece = [*piece, pair]
    expected.append(piece)
    assert len(expected) > 1
    assert expected[0] == pairs[:2]
    ids = ["c", *(f"c#{n}" for n in range(2, len(expected) + 1))]
    assert found == {
        id: tokens_of(joined(piece, system).turns, tokenizer, condition)
        for id, piece in zip(ids, expected, strict=True)
    }
    assert (result.cut, result.first_turn) == (0, len(system))
    assert all(len(row.input_ids) <= two for row in result.samples)


def test_a_template_without_bos_is_split_in_the_same_way(tokenizer):
    pairs = rounds("one", "two", "three")
    limit = max(len(encode(pair, "opencoder", tokenizer)[0]) for pair in pairs)
    (result,) = tokenize(
        [joined(pairs)],
        model_type="opencoder",
        tokenizer=tokenizer,
        max_length=limit,
        long="split",
    )
    assert [(row.input_ids, row.loss_weights) for row in result.samples] == [
        encode(pair, "opencoder", tokenizer) for pair in pairs
    ]


def test_a_round_longer_than_the_context_is_cut_in_a_sample_of_its_own(tokenizer):
    pairs = rounds("a", "b" + 30 * " long", "c")
    encoded = [tokens_of((SYSTEM, *pair), tokenizer) for pair in pairs]
    limit = len(encoded[1][0]) - 4
    found, result = samples(joined(pairs, (SYSTEM,)), tokenizer, limit, long="split")
    assert list(found.values()) == [
        encoded[0],
        (encoded[1][0][:limit], encoded[1][1][:limit]),
        encoded[2],
    ]
    assert result.cut == 4


def test_a_question_longer_than_the_context_makes_no_sample_and_loses_no_other(tokenizer):
    pairs = rounds("q" * 300, "b", "c")
    whole = joined(pairs, (SYSTEM,))
    found, result = samples(whole, tokenizer, 200, long="split")
    assert found == {"c": tokens_of((SYSTEM, *pairs[1], *pairs[2]), tokenizer)}
    head = len(tokens_of((SYSTEM,), tokenizer)[0])
    assert result.cut == len(tokens_of((SYSTEM, *pairs[0]), tokenizer)[0]) - head
    assert result.first_turn == 3
    cut, _ = samples(whole, tokenizer, 200, long="cut")
    assert cut == {}


def test_a_head_longer_than_the_context_leaves_nothing(tokenizer):
    whole = joined(rounds("a", "b"), (Turn(role="system", text="s" * 300),))
    for choice in ("cut", "split", "drop"):
        assert samples(whole, tokenizer, 100, long=choice)[0] == {}


def test_drop_leaves_out_what_is_longer_than_the_context(tokenizer):
    whole = joined(rounds("a", "b"))
    length = len(tokens_of(whole.turns, tokenizer)[0])
    assert samples(whole, tokenizer, length, long="drop")[0] == {
        "c": tokens_of(whole.turns, tokenizer)
    }
    assert samples(whole, tokenizer, length - 1, long="drop")[0] == {}


@pytest.mark.parametrize("limit", [1, 20, 40, 60, 90, 1000])
def test_what_each_choice_yields_is_what_it_makes(tokenizer, limit):
    whole = joined(rounds("one", "two " * 9, "three", "q" * 70), (SYSTEM,))
    made = {c: samples(whole, tokenizer, limit, long=c)[1] for c in ("cut", "split", "drop")}
    for choice, result in made.items():
        rows = result.samples
        expected = (
            len(rows),
            sum(len(row.input_ids) for row in rows),
            sum(row.supervised for row in rows),
        )
        for other in made.values():
            y = other.yields[choice]
            assert (y.samples, y.tokens, y.supervised) == expected


def test_weights_of_turns_decide_which_pieces_are_samples(tokenizer):
    pairs = rounds("one", "two", "three")
    unlearned = [(q, replace(a, weight=0.0)) for q, a in pairs[:2]]
    whole = joined([*unlearned, pairs[2]])
    limit = len(tokens_of(pairs[2], tokenizer)[0])
    found, _ = samples(whole, tokenizer, limit, long="split")
    assert found == {"c": tokens_of(pairs[2], tokenizer)}


def test_a_class_multiplies_the_weights_and_writes_its_condition(tokenizer):
    classes = {
        "gpt-4": ModelClass(condition="GPT4"),
        "gpt-3.5": ModelClass(weight=0.1, condition="GPT3"),
    }
    labels = ["Model: GPT-4", "Model: Default (GPT-3.5)", None]
    results = tokenize(
        [replace(conversation("fine"), model=label) for label in labels],
        model_type="openchat",
        tokenizer=tokenizer,
        max_length=1000,
        classes=classes,
    )
    rows = [row for result in results for row in result.samples]
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
