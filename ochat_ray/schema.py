"""The records that travel between stages, and their Arrow schemas."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import pyarrow as pa

Role = Literal["system", "user", "assistant"]
Origin = Literal["page", "sharegpt", "other"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One message; a user's text is kept byte for byte as typed.

    `weight` is the loss weight that the input gives the turn, or None for the role's own
    (`loss_weight`). `html` says that the text is ChatGPT's rendered HTML, not converted yet.
    """

    role: Role
    text: str
    weight: float | None = None
    html: bool = False

    @property
    def loss_weight(self) -> float:
        """Loss weight of each token of the text: the input's, else 1 for answers, 0 for others."""
        if self.weight is not None:
            return self.weight
        return 1.0 if self.role == "assistant" else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversation:
    """Turns in order, and where they came from.

    `source` is the input file, `id` is unique within it as far as the input says.
    `model` is the label as found, or None. `condition` is the word that the record itself puts
    before every role prefix, or None. `unknown_keys` are the names of the record's and its turns'
    keys of no known meaning ("language", "turn.timestamp"), each once. `left_out` names what
    the record holds and the turns do not ("citation mark", "question without an answer"), as often
    as it was left out.

    Of the answers that were converted from HTML, `fidelity` is the share of blocks that the
    Markdown gives back and `text_fidelity` the share of the visible text; both are None where
    nothing was converted.

    `origin` is "page" for a share page of sharegpt.com and "sharegpt" for a record of its format
    (`conversations` or `items` of `from` and `value`): only there can a browser extension have
    added text. `noise` names the rules of `data/noise_rules.py` that took something off.
    """

    id: str
    source: str
    turns: tuple[Turn, ...]
    model: str | None = None
    title: str | None = None
    condition: str | None = None
    unknown_keys: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    fidelity: float | None = None
    text_fidelity: float | None = None
    origin: Origin = "other"
    noise: tuple[str, ...] = ()


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
    UNSUPPORTED = "unsupported"
    OTHER_MODEL = "other_model"
    TOO_SHORT = "too_short"
    EMPTY_TURN = "empty_turn"
    WRONG_ROLE_ORDER = "wrong_role_order"
    PROVIDER_ERROR = "provider_error"
    BLOCKED_WORD = "blocked_word"
    CONVERSION_FAILED = "conversion_failed"
    LOW_FIDELITY = "low_fidelity"
    CONTAMINATED = "contaminated"
    DUPLICATE = "duplicate"
    NEAR_DUPLICATE = "near_duplicate"
    TOO_LONG = "too_long"
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


@dataclass(frozen=True, kw_only=True, slots=True)
class PassedOver:
    """A file, or an archive's member, of a kind that holds no conversations.

    `kind` is its extension in lower case with the dot (".txt"; ".csv.gz"; ".zip" for an archive
    inside an archive), "no extension", "hidden" (a hidden folder counts once), "archive noise" for
    what an operating system adds (__MACOSX, .DS_Store), "link" (to nowhere or back up; any in an
    archive), or "special file" (a FIFO, socket or device).
    """

    source: str
    kind: str


Record = Conversation | Drop | PassedOver
"""A result of reading: counted as kept or dropped later, or as passed over."""


TURNS = pa.list_(
    pa.struct([("role", pa.string()), ("text", pa.string()), ("weight", pa.float32())])
)

CONVERSATIONS = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("model", pa.string()),
        ("title", pa.string()),
        ("turns", TURNS),
        ("digest", pa.string()),
        ("fidelity", pa.float32()),
        ("text_fidelity", pa.float32()),
        ("condition", pa.string()),
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
        "turns": [
            {"role": turn.role, "text": turn.text, "weight": turn.loss_weight}
            for turn in conversation.turns
        ],
        "digest": digest,
        "fidelity": conversation.fidelity,
        "text_fidelity": conversation.text_fidelity,
        "condition": conversation.condition,
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
