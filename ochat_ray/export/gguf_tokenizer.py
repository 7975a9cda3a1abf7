"""Compare the tokenizer in a GGUF file with the files of the model directory.

The converter reads the directory through transformers. This check reads tokenizer.json as JSON and
the GGUF file with the package `gguf`, so both do not share a mistake.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any


class TokenType(IntEnum):
    """Token types of GGUF, as in its specification."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Tokens of tokenizer.json: strings by id, ids of added and special ones, merges of BPE."""

    tokens: Mapping[int, str]
    added: Mapping[int, bool]
    """Added tokens by id: True for special ones."""
    merges: tuple[tuple[str, str], ...] | None


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """Chat template of a directory, and the ids that begin and end what a model reads and writes.

    `bos` is None for a tokenizer without one. `starts_with_bos` holds for the ids of a prompt, and
    `writes_bos` if the template's text begins with that token. `end` is the end of turn.
    """

    template: str
    bos: int | None
    starts_with_bos: bool
    writes_bos: bool
    end: int


def read_vocabulary(tokenizer_json: Path) -> Vocabulary:
    """Read the tokens of a tokenizer.json."""
    found = json.loads(tokenizer_json.read_bytes())
    model = found["model"]
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        tokens = {id: token for token, id in vocab.items()}
    else:  # Unigram: pairs of token and score
        tokens = {id: token for id, (token, _) in enumerate(vocab)}
    added = found.get("added_tokens", [])
    tokens |= {token["id"]: token["content"] for token in added}
    pairs = model.get("merges")
    merges = None if pairs is None else tuple(_pair(merge) for merge in pairs)
    return Vocabulary(
        tokens=tokens,
        added={token["id"]: token["special"] for token in added},
        merges=merges,
    )


def read_metadata(file: Path) -> dict[str, Any]:
    """Return the tokenizer's keys of a GGUF file with their values."""
    from gguf import GGUFReader

    fields = GGUFReader(file).fields
    return {name: fields[name].contents() for name in fields if name.startswith("tokenizer.")}


def differences(metadata: Mapping[str, Any], vocabulary: Vocabulary, prompt: Prompt) -> list[str]:
    """Return how a GGUF file's tokenizer differs from its directory's; empty if it does not."""
    found = [
        *_token_differences(metadata, vocabulary),
        *_merge_differences(metadata, vocabulary),
    ]
    if metadata.get("tokenizer.chat_template") != prompt.template:
        found.append("its chat template is another one")
    ends = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    if prompt.end not in ends:
        found.append(
            f"none of its end tokens (eos {ends[0]}, eot {ends[1]}) is the end of turn, "
            f"{prompt.end}"
        )
    bos = metadata.get("tokenizer.ggml.bos_token_id")
    if prompt.bos is not None and bos != prompt.bos:
        found.append(f"its BOS is {bos}, not {prompt.bos}")
    adds = adds_bos(metadata)  # not a second one if the template writes it
    if (adds or prompt.writes_bos) != prompt.starts_with_bos:
        has = "has" if prompt.starts_with_bos else "has no"
        found.append(f"add_bos_token is {adds}, but a prompt of the directory {has} BOS")
    return found


def adds_bos(metadata: Mapping[str, Any]) -> bool:
    """Return whether llama.cpp adds BOS to a prompt.

    Without the flag it does for SentencePiece's vocabularies alone.
    """
    default = metadata.get("tokenizer.ggml.model") == "llama"
    return bool(metadata.get("tokenizer.ggml.add_bos_token", default))


def _token_differences(metadata: Mapping[str, Any], vocabulary: Vocabulary) -> list[str]:
    tokens: Sequence[str] = metadata.get("tokenizer.ggml.tokens", ())
    types: Sequence[int] = metadata.get("tokenizer.ggml.token_type", ())
    if len(types) != len(tokens):
        return [f"it has {len(tokens):,} tokens and {len(types):,} types of them"]
    wrong, wrong_types = [], []
    for id, expected in vocabulary.tokens.items():
        if id >= len(tokens):
            wrong.append(id)
            continue
        special = vocabulary.added.get(id)
        spaces = expected.replace("▁", " ")  # llama.cpp has added tokens as text
        if tokens[id] != expected and not (special is False and tokens[id] == spaces):
            wrong.append(id)
        if types[id] not in _possible_types(special):
            wrong_types.append(id)
    unknown = [
        id
        for id, kind in enumerate(types)
        if id not in vocabulary.tokens and kind != TokenType.UNUSED
    ]
    return [
        f"{len(ids):,} {what}, first {min(ids)} "
        f"({vocabulary.tokens.get(min(ids), 'not in tokenizer.json')!r})"
        for ids, what in (
            (wrong, "tokens differ"),
            (wrong_types, "tokens have another type"),
            (unknown, "tokens are not in tokenizer.json"),
        )
        if ids
    ]


def _possible_types(special: bool | None) -> tuple[int, ...]:
    """Return the types of a token by whether it is special; None for one that is not added."""
    if special is None:
        return (TokenType.NORMAL, TokenType.BYTE, TokenType.UNKNOWN, TokenType.UNUSED)
    if special:
        return (TokenType.CONTROL, TokenType.UNKNOWN)
    # llama.cpp reads names such as <|tool|> as tokens, whether they are special or not.
    return (TokenType.USER_DEFINED, TokenType.CONTROL)


def _merge_differences(metadata: Mapping[str, Any], vocabulary: Vocabulary) -> list[str]:
    written = metadata.get("tokenizer.ggml.merges")
    if written is None or vocabulary.merges is None:
        scored = metadata.get("tokenizer.ggml.model") in ("llama", "t5")
        return [] if scored else ["it has no merges"]
    # A space within a token is written as Ġ, and one space is between the two.
    expected = [" ".join(part.replace(" ", "Ġ") for part in pair) for pair in vocabulary.merges]
    return [] if list(written) == expected else ["its merges differ"]


def _pair(merge: Any) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right
