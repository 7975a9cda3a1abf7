"""Records passed between stages, and their Arrow schemas."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import pyarrow as pa

Role = Literal["system", "user", "assistant"]
Origin = Literal["page", "sharegpt", "other"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One message of a conversation; a user's text is kept byte for byte as typed.

    `weight` is the loss weight given by the input, or None for the role's default (`loss_weight`).
    `html` marks text that is ChatGPT's rendered HTML, not yet converted.
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
    """Turns in order, with their provenance.

    `source` is the input file; `id` is unique within it as far as the input provides ids. `model`
    is the label as found, or None. `condition` is the condition word that the record itself puts
    before every role prefix, or None. `unknown_keys` lists keys of the record and its turns that
    have no known meaning ("language", "turn.timestamp"), each once. `left_out` names content of the
    record that the turns do not contain ("citation mark", "question without an answer"), once per
    occurrence.

    For answers converted from HTML, `fidelity` is the share of blocks that the Markdown reproduces
    and `text_fidelity` the share of the visible text; both are None if nothing was converted.

    `origin` is "page" for a share page of sharegpt.com and "sharegpt" for a record of its format
    (`conversations` or `items` of `from` and `value`): only in these can a browser extension have
    added text. `noise` names the rules of `data/noise_rules.py` that removed something.
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
    """C-RLFT settings for the conversations of one model label.

    `weight` multiplies their loss weights; `condition` is written before every role prefix.
    """

    weight: float = 1.0
    condition: str = ""


class Reason(StrEnum):
    """Reasons for dropping an input: a closed list, explained in docs/data-format.md."""

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
    """Stages of `prepare` that may drop an input."""

    READ = "read"
    CLEAN = "clean"
    DEDUP = "dedup"
    TOKENIZE = "tokenize"


@dataclass(frozen=True, kw_only=True, slots=True)
class Drop:
    """Input that was dropped. `detail` helps a person to find it in its source."""

    id: str
    source: str
    stage: Stage
    reason: Reason
    detail: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class PassedOver:
    """File or archive member that was skipped because its kind holds no conversations.

    `kind` is its extension in lower case with the dot (".txt"; ".csv.gz"; ".zip" for an archive
    inside an archive), "no extension", "hidden" (a hidden folder counts once), "archive noise" for
    what an operating system adds (__MACOSX, .DS_Store), "link" (broken or cyclic; any link in an
    archive), or "special file" (a FIFO, socket or device).
    """

    source: str
    kind: str


Record = Conversation | Drop | PassedOver
"""Result of reading: later counted as kept or dropped, or as passed over."""


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
    """Return the conversation as a row of the CONVERSATIONS table."""
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
    """Return the drop as a row of the DROPPED table."""
    return {
        "id": drop.id,
        "source": drop.source,
        "stage": str(drop.stage),
        "reason": str(drop.reason),
        "detail": drop.detail,
    }
