"""Convert conversations to rows of the token table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ochat_ray.data.long_conversations import CHOICES, Layout, Long, Piece, layout_of, pieces
from ochat_ray.data.model_labels import normalize_model
from ochat_ray.data.verify import DIGEST_MODULUS, row_digest
from ochat_ray.run_dir import Split
from ochat_ray.schema import Conversation, ModelClass
from ochat_ray.tokenization.template import encode_batch, template_for
from ochat_ray.tokenization.tokenizer import end_of_turn_id


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenRow:
    """Ids and loss weights of one sample: a conversation, or a piece of a long one."""

    id: str
    input_ids: list[int]
    loss_weights: list[float]

    @property
    def supervised(self) -> int:
        """Number of tokens with nonzero weight."""
        return len(self.loss_weights) - self.loss_weights.count(0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Yield:
    """Samples, tokens and supervised tokens of a conversation; 0 if it is dropped."""

    samples: int = 0
    tokens: int = 0
    supervised: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokenized:
    """Samples of one conversation; none if no supervised token is left.

    `length` is the conversation's length in tokens, of which `cut` are in no sample. `first_turn`
    is the first turn of the first sample, apart from a system turn. `yields` has the result of each
    choice of `--long`. `notes` counts what a model's own chat template did, and `refused` is its
    reason for refusing the conversation.
    """

    samples: tuple[TokenRow, ...]
    length: int
    cut: int
    first_turn: int
    yields: Mapping[Long, Yield]
    notes: Mapping[str, int] = field(default_factory=dict)
    refused: str = ""


def tokenize(
    conversations: Sequence[Conversation],
    *,
    model_type: str,
    tokenizer: Any,
    max_length: int,
    classes: Mapping[str, ModelClass] | None = None,
    long: Long = "cut",
) -> list[Tokenized]:
    """Return the conversations' samples, in order, each of at most `max_length` tokens.

    Further samples of a conversation have "#2", "#3", ... appended to its id.

    Args:
        conversations: The conversations.
        model_type: Key of the template.
        tokenizer: Tokenizer with the end-of-turn token.
        max_length: Maximum tokens per sample.
        classes: C-RLFT settings by normalized model label; other labels have weight 1. A
            conversation's
            own condition applies if its label has none.
        long: Treatment of conversations longer than `max_length`.
    """
    found = [
        (classes or {}).get(normalize_model(conversation.model), ModelClass())
        for conversation in conversations
    ]
    encoded = encode_batch(
        [conversation.turns for conversation in conversations],
        model_type,
        tokenizer,
        conditions=[
            of_model.condition or conversation.condition or ""
            for conversation, of_model in zip(conversations, found, strict=True)
        ],
    )
    bos = int(template_for(model_type).bos)
    end_of_turn = end_of_turn_id(tokenizer)
    return [
        _tokenized(
            conversation,
            ids,
            _times(of_model.weight, weights),
            max_length=max_length,
            long=long,
            bos=bos,
            end_of_turn=end_of_turn,
        )
        for conversation, of_model, (ids, weights) in zip(
            conversations, found, encoded, strict=True
        )
    ]


def _tokenized(
    conversation: Conversation,
    ids: list[int],
    weights: list[float],
    *,
    max_length: int,
    long: Long,
    bos: int,
    end_of_turn: int,
) -> Tokenized:
    if len(ids) <= max_length:
        whole = TokenRow(id=conversation.id, input_ids=ids, loss_weights=weights)
        supervised = whole.supervised
        same = Yield(samples=1, tokens=len(ids), supervised=supervised) if supervised else Yield()
        return Tokenized(
            samples=(whole,) if supervised else (),
            length=len(ids),
            cut=0,
            first_turn=0,
            yields=dict.fromkeys(CHOICES, same),
        )
    # The token ends each turn and occurs nowhere else: text never becomes it.
    ends = np.flatnonzero(np.asarray(ids) == end_of_turn) + 1
    layout = layout_of([turn.role for turn in conversation.turns], ends.tolist(), bos)
    before = np.concatenate(([0], np.cumsum(np.asarray(weights) != 0.0)))
    kept = {choice: _supervised(layout, max_length, choice, before) for choice in CHOICES}
    chosen = kept[long]
    covered = sum(piece.body[1] - piece.body[0] for piece in chosen)
    samples = tuple(
        TokenRow(
            id=conversation.id if number == 1 else f"{conversation.id}#{number}",
            input_ids=_join(ids, piece),
            loss_weights=_join(weights, piece),
        )
        for number, piece in enumerate(chosen, 1)
    )
    head = chosen[0].head[1] if chosen else 0
    return Tokenized(
        samples=samples,
        length=len(ids),
        cut=len(ids) - head - covered,
        first_turn=chosen[0].first_turn if chosen else 0,
        yields={
            choice: Yield(
                samples=len(found),
                tokens=sum(piece.length for piece in found),
                supervised=sum(_count(before, piece) for piece in found),
            )
            for choice, found in kept.items()
        },
    )


def _supervised(
    layout: Layout, max_length: int, long: Long, before: np.ndarray[Any, Any]
) -> list[Piece]:
    """Return the pieces that have a supervised token."""
    return [piece for piece in pieces(layout, max_length, long) if _count(before, piece)]


def _count(before: np.ndarray[Any, Any], piece: Piece) -> int:
    """Count a piece's supervised tokens; `before` has their number before each position."""
    return int(sum(before[end] - before[start] for start, end in (piece.head, piece.body)))


def _join(values: list[Any], piece: Piece) -> list[Any]:
    return values[slice(*piece.head)] + values[slice(*piece.body)]


def _times(factor: float, weights: list[float]) -> list[float]:
    return weights if factor == 1.0 else [factor * weight for weight in weights]


def table_digest(rows: Iterable[tuple[Split, TokenRow]]) -> int:
    """Return a hash of a set of rows: the sum modulo 2**256 of each row's SHA-256.

    The sum does not depend on order, files, blocks or workers, and sums of parts add up to the
    total. A duplicated row changes it.
    """
    return (
        sum(
            row_digest(
                split,
                row.id,
                np.asarray(row.input_ids, "<i4").tobytes(),
                np.asarray(row.loss_weights, "<f4").tobytes(),
            )
            for split, row in rows
        )
        % DIGEST_MODULUS
    )
