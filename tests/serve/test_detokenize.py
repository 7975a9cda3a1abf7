from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from ochat_ray.errors import UserError
from ochat_ray.serve.detokenize import Detokenizer, StopStrings, Vocabulary, vocabulary_of


def cut(data, at):
    edges = [0, *sorted({min(i, len(data)) for i in at}), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


BYTES = Vocabulary(token_bytes={i: bytes([i]) for i in range(256)}, strip_first_blank=False)


@given(st.text(), st.lists(st.integers(0, 60)))
def test_pieces_are_the_text_and_never_half_a_character(text, at):
    detokenizer = Detokenizer(BYTES)
    pieces = [detokenizer.push(piece) for piece in cut(text.encode(), at)]
    assert "".join(pieces) == text


@given(st.binary(), st.lists(st.integers(0, 60)))
def test_cutting_never_changes_what_invalid_bytes_become(data, at):
    detokenizer = Detokenizer(BYTES)
    pieces = "".join(detokenizer.push(piece) for piece in cut(data, at))
    whole = data.decode("utf-8", "replace")
    # An unfinished character at the end is not shown; half a surrogate would be two of them.
    assert whole in (pieces, pieces + "\ufffd", pieces + "\ufffd\ufffd")


def test_replacement_character_that_the_model_wrote_is_kept():
    assert Detokenizer(BYTES).push("a\ufffdb".encode()) == "a\ufffdb"


def test_half_an_emoji_at_the_end_is_not_shown():
    assert Detokenizer(BYTES).push("ok🙂".encode()[:-1]) == "ok"


@given(st.text(max_size=40))
def test_byte_level_equals_the_tokenizers_decoder(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    detokenizer = Detokenizer(vocabulary_of(tokenizer))
    assert "".join(detokenizer.push([i]) for i in ids) == tokenizer.decode(ids) == text


def test_special_tokens_are_not_text(tokenizer):
    end_of_turn = tokenizer.convert_tokens_to_ids("<|end_of_turn|>")
    assert Detokenizer(vocabulary_of(tokenizer)).push([0, end_of_turn]) == ""


class Sentencepiece:
    """LLaMA's kind of tokenizer, in four words and the bytes of a euro sign."""

    def __init__(self):
        pieces = ["<unk>", "▁hello", "▁", "lo", "<0xE2>", "<0x82>", "<0xAC>"]
        self.backend_tokenizer = Tokenizer(
            models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=[], byte_fallback=True)
        )
        self.backend_tokenizer.decoder = decoders.Sequence(
            [
                decoders.Replace("▁", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(content=" ", left=1),
            ]
        )

    def get_vocab(self):
        return self.backend_tokenizer.get_vocab()


@pytest.mark.parametrize("ids", [[1, 3], [2, 1, 1], [1, 4, 5, 6, 2], [4, 5, 6]])
def test_sentencepiece_equals_the_tokenizers_decoder(ids):
    fake = Sentencepiece()
    detokenizer = Detokenizer(vocabulary_of(fake))
    pieces = "".join(detokenizer.push([i]) for i in ids)
    assert pieces == fake.backend_tokenizer.decode(ids)


def test_unknown_decoder_is_refused_in_one_line():
    fake = Sentencepiece()
    fake.backend_tokenizer.decoder = decoders.WordPiece()
    with pytest.raises(UserError, match="WordPiece"):
        vocabulary_of(fake)


STOPS = st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=4)


def first_complete(text, stops):
    """By hand: the shortest beginning of the text that ends in a stop string, without it."""
    for end in range(len(text) + 1):
        ended = [s for s in stops if text[:end].endswith(s)]
        if ended:
            return text[: end - max(map(len, ended))], True
    return text, False


@given(st.text("abc", max_size=30), STOPS, st.lists(st.integers(0, 30)))
def test_stop_strings_are_found_wherever_the_text_is_cut(text, stops, at):
    watcher, shown, hit = StopStrings(stops), "", False
    for piece in cut(text, at):
        more, hit = watcher.push(piece)
        shown += more
        assert not any(stop in shown for stop in stops)
        if hit:
            break
    else:
        shown += watcher.flush()
    assert (shown, hit) == first_complete(text, stops)


def test_what_may_become_a_stop_string_is_held_back():
    watcher = StopStrings(["\n\nHuman:"])
    assert watcher.push("hi\n\nHum") == ("hi", False)
    assert watcher.push("ble") == ("\n\nHumble", False)
    assert watcher.push("\n\nHuman: x") == ("", True)


@pytest.mark.parametrize("at", range(1, 8))
def test_every_beginning_of_a_stop_string_is_held_back(at):
    stop = "\n\nHuman:"
    watcher = StopStrings([stop])
    assert watcher.push("hi" + stop[:at]) == ("hi", False)
    assert watcher.push(stop[at:] + " x") == ("", True)
