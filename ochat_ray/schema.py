"""Records passed between stages, and their Arrow schemas."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Literal

import pyarrow as pa

Role = Literal["system", "developer", "user", "assistant", "tool"]
"""Role of a turn. The templates of 2023 know system, user and assistant."""
Origin = Literal["page", "sharegpt", "other"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolCall:
    """Call of a function by an answer; `arguments` is a JSON object as text."""

    id: str
    name: str
    arguments: str


MAX_NESTING = 100
"""Levels of objects and arrays that tools and arguments may have.

The recursion limits of Python, of its JSON and of Jinja differ between versions; all are above it.
"""


def is_nested_too_deeply(value: Any) -> bool:
    """Return whether a decoded JSON value has more than `MAX_NESTING` levels."""
    level = [value]
    for _ in range(MAX_NESTING + 1):
        level = [item for item in level if isinstance(item, (dict, list))]
        if not level:
            return False
        level = [child for item in level for child in _children(item)]
    return True


def _children(item: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return item.values() if isinstance(item, dict) else item


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One message of a conversation; a user's text is kept byte for byte as typed.

    `weight` is the loss weight given by the input, or None for the role's default (`loss_weight`).
    `html` marks text that is ChatGPT's rendered HTML, not yet converted. `reasoning` and
    `tool_calls` belong to an answer; `tool_call_id` names the call whose result a tool's turn is.
    """

    role: Role
    text: str
    weight: float | None = None
    html: bool = False
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""

    @property
    def is_plain(self) -> bool:
        """Return whether role and text are all that the turn has."""
        return not (self.reasoning or self.tool_calls or self.tool_call_id or self.name)

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
    occurrence. `tools` is the JSON array of the tools that the record offers, or "".

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
    tools: str = ""
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
    NO_LOSS_WEIGHT = "no_loss_weight"
    TOO_LONG = "too_long"
    NO_SUPERVISED_TOKENS = "no_supervised_tokens"
    TEMPLATE_REFUSED = "template_refused"


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
    pa.struct(
        [
            ("role", pa.string()),
            ("text", pa.string()),
            ("weight", pa.float32()),
            ("reasoning", pa.string()),
            (
                "tool_calls",
                pa.list_(pa.struct([(n, pa.string()) for n in ("id", "name", "arguments")])),
            ),
            ("tool_call_id", pa.string()),
            ("name", pa.string()),
        ]
    )
)
"""Turns; the last four are null where a turn has none."""

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
        ("tools", pa.string()),
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
        "turns": [_turn_row(turn) for turn in conversation.turns],
        "digest": digest,
        "fidelity": conversation.fidelity,
        "text_fidelity": conversation.text_fidelity,
        "condition": conversation.condition,
        "tools": conversation.tools or None,
    }


def _turn_row(turn: Turn) -> dict[str, object]:
    return {
        "role": turn.role,
        "text": turn.text,
        "weight": turn.loss_weight,
        "reasoning": turn.reasoning or None,
        "tool_calls": [asdict(call) for call in turn.tool_calls] or None,
        "tool_call_id": turn.tool_call_id or None,
        "name": turn.name or None,
    }


def turn_of(row: Mapping[str, Any]) -> Turn:
    """Return the turn of a row of TURNS; columns may be missing, as in tables of earlier runs."""
    return Turn(
        role=row["role"],
        text=row["text"],
        weight=row.get("weight"),
        reasoning=row.get("reasoning") or "",
        tool_calls=tuple(ToolCall(**call) for call in row.get("tool_calls") or ()),
        tool_call_id=row.get("tool_call_id") or "",
        name=row.get("name") or "",
    )


def drop_row(drop: Drop) -> dict[str, object]:
    """Return the drop as a row of the DROPPED table."""
    return {
        "id": drop.id,
        "source": drop.source,
        "stage": str(drop.stage),
        "reason": str(drop.reason),
        "detail": drop.detail,
    }
