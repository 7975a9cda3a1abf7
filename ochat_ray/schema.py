"""The records that travel between stages, and their Arrow schemas."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import pyarrow as pa

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One message; a user's text is kept byte for byte as typed."""

    role: Role
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversation:
    """Turns in order, and where they came from.

    `source` is the input file, `id` is unique within it as far as the input says.
    `model` is the label as found, or None. `html` says that the assistant's turns are ChatGPT's
    rendered HTML, which `fidelity` measures the conversion of: the share of blocks that the
    Markdown gives back, or None where nothing was converted. `pagers` counts the pagers taken off.
    """

    id: str
    source: str
    turns: tuple[Turn, ...]
    model: str | None = None
    title: str | None = None
    html: bool = False
    fidelity: float | None = None
    pagers: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelClass:
    """What C-RLFT makes of the conversations of one model label.

    `weight` multiplies their loss weights; `condition` stands before every role prefix.
    """

    weight: float = 1.0
    condition: str = ""


class Reason(StrEnum):
    """Why an input was not kept: a closed list, explained in docs/data-format.md."""

    UNREADABLE = "unreadable"
    TORN = "torn"
    TOO_LARGE = "too_large"
    NO_DATA = "no_data"
    MALFORMED = "malformed"
    OTHER_MODEL = "other_model"
    TOO_SHORT = "too_short"
    EMPTY_TURN = "empty_turn"
    WRONG_ROLE_ORDER = "wrong_role_order"
    BLOCKED_WORD = "blocked_word"
    CONVERSION_FAILED = "conversion_failed"
    LOW_FIDELITY = "low_fidelity"
    CONTAMINATED = "contaminated"
    DUPLICATE = "duplicate"
    NEAR_DUPLICATE = "near_duplicate"
    NO_SUPERVISED_TOKENS = "no_supervised_tokens"


class Stage(StrEnum):
    """Where in `prepare` an input was dropped."""

    READ = "read"
    CLEAN = "clean"
    DEDUP = "dedup"
    TOKENIZE = "tokenize"


@dataclass(frozen=True, kw_only=True, slots=True)
class Drop:
    """An input that was not kept. `detail` says what a person needs to find it again."""

    id: str
    source: str
    stage: Stage
    reason: Reason
    detail: str = ""


TURNS = pa.list_(pa.struct([("role", pa.string()), ("text", pa.string())]))

CONVERSATIONS = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("model", pa.string()),
        ("title", pa.string()),
        ("turns", TURNS),
        ("digest", pa.string()),
        ("fidelity", pa.float32()),
    ]
)

DROPPED = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)

TOKENS = pa.schema(
    [
        ("id", pa.string()),
        ("input_ids", pa.list_(pa.int32())),
        ("loss_weights", pa.list_(pa.float32())),
        ("length", pa.int32()),
    ]
)


def conversation_row(conversation: Conversation, digest: str) -> dict[str, object]:
    """A row of the CONVERSATIONS table."""
    return {
        "id": conversation.id,
        "source": conversation.source,
        "model": conversation.model,
        "title": conversation.title,
        "turns": [{"role": turn.role, "text": turn.text} for turn in conversation.turns],
        "digest": digest,
        "fidelity": conversation.fidelity,
    }


def drop_row(drop: Drop) -> dict[str, object]:
    """A row of the DROPPED table."""
    return {
        "id": drop.id,
        "source": drop.source,
        "stage": str(drop.stage),
        "reason": str(drop.reason),
        "detail": drop.detail,
    }
