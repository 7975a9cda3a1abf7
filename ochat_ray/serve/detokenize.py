"""Incremental detokenization: complete characters only, and no stop string."""

from __future__ import annotations

import codecs
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ochat_ray.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """UTF-8 bytes of every token id; special tokens have names but no text.

    Some tokenizers (SentencePiece's) write a space before the first word; if `strip_first_blank` is
    true, it is not part of the text.
    """

    token_bytes: Mapping[int, bytes]
    strip_first_blank: bool
    special_names: Mapping[int, bytes] = field(default_factory=dict)

    def text_bytes(self, token_id: int) -> bytes:
        """Return the bytes of a token; empty for a special token and an unused id."""
        return self.token_bytes.get(token_id, b"")

    def spelling(self, token_id: int) -> bytes:
        """Return the bytes of a token or a special token's name; empty for an unused id."""
        return self.token_bytes.get(token_id) or self.special_names.get(token_id, b"")


class Detokenizer:
    """Incremental decoder of token ids.

    The pieces together are the decoded bytes of all ids, with U+FFFD only for bytes that are not
    valid UTF-8. An incomplete character at the end is held back.

    Args:
        vocabulary: Bytes of the token ids.
        special_tokens: Whether the names of special tokens are text.
        continues: Whether the text continues other text, so that its first space is part of it.
    """

    def __init__(
        self, vocabulary: Vocabulary, *, special_tokens: bool = False, continues: bool = False
    ) -> None:
        self._bytes = vocabulary.spelling if special_tokens else vocabulary.text_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip = vocabulary.strip_first_blank and not continues

    def push(self, token_ids: Sequence[int]) -> str:
        """Return the text that these ids add, possibly empty."""
        data = b"".join(map(self._bytes, token_ids))
        if self._strip and data:
            data, self._strip = data.removeprefix(b" "), False
        return self._decoder.decode(data)


class StopStrings:
    """Matcher that finds the stop string completed first, and holds back possible beginnings.

    The result does not depend on how the text is split into pieces. If `keep` is true, the text
    includes the stop string that ends it.
    """

    def __init__(self, stops: Sequence[str], *, keep: bool = False) -> None:
        assert all(stops), "an empty stop string is everywhere"
        self._stops = tuple(stops)
        self._keep = keep
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Return text that is safe to emit, and whether a stop string ends it."""
        text = self._held + text
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self._held = ""
            end, begin = min(found)
            return text[: end if self._keep else begin], True
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def flush(self) -> str:
        """Return the text held back, once no text can follow."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest suffix of `text` that is a prefix of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0


def text_offsets(
    vocabulary: Vocabulary, token_ids: Sequence[int], *, special_tokens: bool = False
) -> tuple[int, ...]:
    """Return the character offset in the text of these ids at which each token's text begins."""
    detokenizer = Detokenizer(vocabulary, special_tokens=special_tokens)
    offsets, length = [], 0
    for token_id in token_ids:
        offsets.append(length)
        length += len(detokenizer.push((token_id,)))
    return tuple(offsets)


def vocabulary_of(tokenizer: Any) -> Vocabulary:
    """Return the bytes of the ids of a fast transformers tokenizer.

    Two families are supported: byte-level BPE (StarCoder, SmolLM2, Llama 3), whose tokens spell
    bytes in GPT-2's printable alphabet, and SentencePiece (LLaMA), with U+2581 for a space and
    `<0x0A>` for a byte.

    Raises:
        UserError: The tokenizer has another kind of decoder.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    steps = _decoder_steps(backend.get("decoder"))
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        to_bytes, strip = _byte_level, False
    elif "ByteFallback" in kinds or kinds == ["Metaspace"]:
        to_bytes = _sentencepiece
        strip = "Strip" in kinds or any(
            step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never"
            for step in steps
        )
    else:
        raise UserError(f"cannot stream text from a tokenizer with the decoder {kinds}")
    added = {token["id"]: token for token in backend["added_tokens"]}
    token_bytes = {
        token_id: to_bytes(token)
        for token, token_id in tokenizer.get_vocab().items()
        if token_id not in added
    }
    token_bytes |= {
        token_id: token["content"].encode()
        for token_id, token in added.items()
        if not token["special"]
    }
    special_names = {
        token_id: token["content"].encode() for token_id, token in added.items() if token["special"]
    }
    return Vocabulary(token_bytes=token_bytes, strip_first_blank=strip, special_names=special_names)


def _decoder_steps(decoder: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if decoder is None:
        return []
    return list(decoder["decoders"]) if decoder["type"] == "Sequence" else [decoder]


def _byte_level_alphabet() -> dict[str, int]:
    """Return GPT-2's byte alphabet: printable bytes as themselves, others from U+0100 upwards."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    moved = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + index): byte for index, byte in enumerate(moved)
    }


_ALPHABET = _byte_level_alphabet()


def _byte_level(token: str) -> bytes:
    # Like the decoder in `tokenizers`: a token outside the alphabet is kept literally.
    if all(character in _ALPHABET for character in token):
        return bytes(_ALPHABET[character] for character in token)
    return token.encode()


def _sentencepiece(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes.fromhex(token[3:5])
    return token.replace("\u2581", " ").encode()
