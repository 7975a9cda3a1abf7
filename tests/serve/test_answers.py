"""Pieces of text out of deltas, and several answers side by side."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ochat_ray.serve.answers import Echo, Piece, TextRules, merge, pieces
from ochat_ray.serve.detokenize import Vocabulary
from ochat_ray.serve.engines.base import Delta, EngineError, TokenLogprobs

BYTES = Vocabulary(token_bytes={i: bytes([i]) for i in range(256)}, strip_first_blank=False)
STOP_ID = 256


def deltas_of(ids, cuts, *, logprobs, reason):
    """The ids in deltas that end at `cuts`, each with entries where they are wanted."""
    borders = sorted({*(cut for cut in cuts if 0 < cut < len(ids)), len(ids)})
    begin, found = 0, []
    for end in borders:
        part = tuple(ids[begin:end])
        entries = tuple(TokenLogprobs(token_id=i, logprob=-1.0) for i in part)
        found.append(
            Delta(
                token_ids=part,
                finish_reason=reason if end == len(ids) else None,
                logprobs=entries if logprobs else (),
            )
        )
        begin = end
    return found


async def collect(deltas, stops=(), **rules):
    rules = TextRules(**{"stops": tuple(stops), "stop_ids": (STOP_ID,), **rules})

    async def source():
        for delta in deltas:
            yield delta

    return [piece async for piece in pieces(source(), BYTES, rules)]


@given(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=30),
    st.lists(st.integers(0, 60), max_size=8),
    st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=3), max_size=3),
)
def test_entries_are_those_of_the_shown_text_however_it_is_cut(text, cuts, stops):
    ids = [*text.encode(), STOP_ID]
    shown = [
        asyncio.run(collect(deltas_of(ids, c, logprobs=True, reason="stop"), stops))
        for c in (cuts, [], range(60))
    ]
    # The stop string that is complete first cuts; of those, the one that begins first.
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    first = min(ends)[1] if ends else len(text)
    for found in shown:
        assert "".join(piece.text for piece in found) == text[:first]
        entries = [entry for piece in found for entry in piece.logprobs]
        assert bytes(entry.token_id for _, entry in entries) == text[:first].encode()
        assert [piece.finish_reason for piece in found][-1] == "stop"
        # Each entry's place is where its character begins.
        assert [at for at, _ in entries] == [
            at for at, character in enumerate(text[:first]) for _ in character.encode()
        ]


def test_a_stream_without_an_end_is_an_error():
    deltas = deltas_of([65, 66], [1], logprobs=False, reason=None)
    with pytest.raises(EngineError, match="without a finish reason"):
        asyncio.run(collect(deltas))


@pytest.mark.parametrize("cuts", [range(9), (), (3,)])
def test_tokens_are_counted_up_to_the_stop_string(cuts):
    deltas = deltas_of(list(b"abcdef"), cuts, logprobs=False, reason="length")
    found = asyncio.run(collect(deltas, ("cd",)))
    assert (found[-1].tokens, found[-1].finish_reason) == (4, "stop")


STOPPED = [*b"abc", ord("d")]


@pytest.mark.parametrize("logprobs", [False, True])
def test_a_stop_token_is_part_of_the_text_only_if_asked(logprobs):
    deltas = deltas_of(STOPPED, [2], logprobs=logprobs, reason="stop")
    for include, text in ((False, "abc"), (True, "abcd")):
        found = asyncio.run(collect(deltas, stop_ids=(ord("d"),), include_stop=include))
        assert "".join(piece.text for piece in found) == text
        assert (found[-1].tokens, found[-1].finish_reason) == (4, "stop")
        assert sum(len(piece.logprobs) for piece in found) == len(text) * logprobs


@pytest.mark.parametrize("cuts", [range(9), (), (3,)])
def test_a_stop_string_is_part_of_the_text_only_if_asked(cuts):
    deltas = deltas_of(list(b"abcdef"), cuts, logprobs=False, reason="length")
    found = asyncio.run(collect(deltas, ("cd",), include_stop=True))
    assert "".join(piece.text for piece in found) == "abcd"
    assert (found[-1].tokens, found[-1].finish_reason) == (4, "stop")


@pytest.mark.parametrize("cuts", [range(9), (), (3,)])
def test_stop_strings_before_min_tokens_are_text(cuts):
    deltas = deltas_of(list(b"abcabcabc"), cuts, logprobs=False, reason="length")
    found = asyncio.run(collect(deltas, ("bc",), min_tokens=3))
    assert "".join(piece.text for piece in found) == "abca"
    assert found[-1].tokens == 6


def test_names_of_special_tokens_are_text_only_if_asked():
    vocabulary = Vocabulary(
        token_bytes=BYTES.token_bytes, strip_first_blank=False, special_names={257: b"<s>"}
    )

    async def text(**rules):
        async def source():
            for delta in deltas_of([97, 257, 98], [1], logprobs=False, reason="length"):
                yield delta

        stream = pieces(source(), vocabulary, rules_of(rules))
        return "".join([piece.text async for piece in stream])

    assert asyncio.run(text()) == "ab"
    assert asyncio.run(text(special_tokens=True)) == "a<s>b"


def test_the_first_space_is_text_only_where_other_text_comes_before():
    vocabulary = Vocabulary(token_bytes=BYTES.token_bytes, strip_first_blank=True)

    async def text(echo=None, **rules):
        async def source():
            for delta in deltas_of(list(b" a"), [1], logprobs=False, reason="length"):
                yield delta

        stream = pieces(source(), vocabulary, rules_of(rules), echo)
        return "".join([piece.text async for piece in stream])

    assert asyncio.run(text()) == "a"
    assert asyncio.run(text(continues=True)) == " a"
    assert asyncio.run(text(echo=Echo(ids=list(b" xy")))) == "xy a"


def rules_of(rules):
    return TextRules(**rules)


async def said(texts, *, log, pause_s=0.0, error=None):
    try:
        for number, text in enumerate(texts, 1):
            await asyncio.sleep(pause_s)
            last = number == len(texts)
            yield Piece(
                text=text, tokens=number, finish_reason="stop" if last and not error else None
            )
        if error:
            raise error
    finally:
        log.append("closed")


def merged(streams, *, quiet_s=9.0, timeout_s=9.0, at_once=9, read=None):
    async def run():
        found = []
        stream = merge(streams, quiet_s=quiet_s, timeout_s=timeout_s, at_once=at_once)
        try:
            async for event in stream:
                found.append(event)
                if read is not None and len(found) == read:
                    break
        except (EngineError, TimeoutError) as raised:
            found.append(raised)
        finally:
            await stream.aclose()
        return found

    return asyncio.run(run())


def test_every_answer_comes_whole_and_in_its_order():
    log = []
    found = merged([said("abc", log=log), said("xy", log=log)])
    for index, text in enumerate(("abc", "xy")):
        own = [event.piece for event in found if event.index == index]
        assert "".join(piece.text for piece in own) == text
        assert own[-1].finish_reason == "stop"
        assert own[-1].tokens == len(text)
    assert log == ["closed"] * 2


def test_one_at_a_time_is_one_after_the_other():
    log = []
    found = merged([said("abc", log=log, pause_s=0.01), said("xy", log=log)], at_once=1)
    indices = [event.index for event in found]
    assert indices == sorted(indices)
    assert set(indices) == {0, 1}
    assert log == ["closed"] * 2


def test_silence_is_said_and_the_deadline_ends_it():
    log = []
    found = merged([said("ab", log=log, pause_s=0.2)], quiet_s=0.05, timeout_s=0.3)
    assert found[0] is None
    assert isinstance(found[-1], TimeoutError)
    assert log == ["closed"]


def test_an_error_comes_after_what_was_said_and_closes_all():
    log = []
    slow = said("xyz", log=log, pause_s=5)
    found = merged([slow, said("ab", log=log, error=EngineError("broke"))])
    assert "".join(event.piece.text for event in found[:-1]) == "ab"
    assert str(found[-1]) == "broke"
    assert log == ["closed"] * 2


def test_a_reader_that_leaves_closes_all():
    log = []
    merged([said("abc", log=log, pause_s=0.01), said("xyz", log=log, pause_s=5)], read=1)
    assert log == ["closed"] * 2
