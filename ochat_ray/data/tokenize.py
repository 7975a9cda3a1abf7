"""From conversations to rows of the token table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ochat_ray.data.clean import normalize_model
from ochat_ray.data.verify import DIGEST_MODULUS, row_digest
from ochat_ray.run_dir import Split
from ochat_ray.schema import Conversation, ModelClass
from ochat_ray.template import encode_batch


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenRow:
    """One conversation's ids and loss weights, cut at the context length."""

    id: str
    input_ids: list[int]
    loss_weights: list[float]
    cut: int
    """Tokens that the context length cut off."""

    @property
    def supervised(self) -> int:
        """How many tokens have a weight."""
        return len(self.loss_weights) - self.loss_weights.count(0.0)


def tokenize(
    conversations: Sequence[Conversation],
    *,
    model_type: str,
    tokenizer: Any,
    max_length: int,
    classes: Mapping[str, ModelClass] | None = None,
) -> list[TokenRow]:
    """Rows in the order of the conversations, each cut at `max_length` tokens.

    A row may have no supervised token left; the caller decides what becomes of it. `classes` are
    by normalised model label; other labels' conversations weigh 1. A conversation's own condition
    stands where its label has none.
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
    return [
        TokenRow(
            id=conversation.id,
            input_ids=ids[:max_length],
            loss_weights=_times(of_model.weight, weights[:max_length]),
            cut=max(0, len(ids) - max_length),
        )
        for conversation, of_model, (ids, weights) in zip(
            conversations, found, encoded, strict=True
        )
    ]


def _times(factor: float, weights: list[float]) -> list[float]:
    return weights if factor == 1.0 else [factor * weight for weight in weights]


def table_digest(rows: Iterable[tuple[Split, TokenRow]]) -> int:
    """A hash of a set of rows: the sum modulo 2**256 of each row's SHA-256.

    Sums of parts add up to the sum of the whole, in whatever order: the digest does not depend on
    files, blocks or workers. A row that is there twice changes it.
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
