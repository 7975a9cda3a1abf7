"""A conversation from one decoded record: ShareGPT's, OpenAI's messages, or a share page's."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ochat_ray.schema import Conversation, Drop, Origin, Reason, Role, Stage, Turn

MAX_CHARACTERS = 8_000_000
"""Of one conversation; a book has a million."""

ROLES: Mapping[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "assistant": "assistant",
    "system": "system",
}

# A turn that is one block of HTML from its first character to its last.
_BLOCK_HTML = re.compile(
    r"\s*(?:\d+ / \d+\s*)?<(?:div|p|pre|ol|ul|h[1-6]|table|blockquote)[\s>].*</?\w+>\s*\Z",
    re.DOTALL | re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadOptions:
    """What a user says about the inputs.

    `answers` says what the answers are, "auto" that each is looked at. `columns` names the
    columns of records that have other names: {"conversations": "dialog", "role": "speaker"}.
    `branches` says which path of a tree of messages is read, or all of them.
    """

    answers: Literal["auto", "html", "markdown"] = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)
    branches: Literal["current", "all"] = "current"


DEFAULTS = ReadOptions()


def records_of(
    item: Any, *, source: str, index: int, options: ReadOptions = DEFAULTS, page: bool = False
) -> Iterator[Conversation | Drop]:
    """The conversations of one decoded record, mostly one; arguments as `parse_item`."""
    yield parse_item(item, source=source, index=index, page=page)


def parse_item(item: Any, *, source: str, index: int, page: bool = False) -> Conversation | Drop:
    """One conversation from a decoded record; `index` counts the file's records from 0.

    Records are {id?, model?, title?, and one of conversations, items, messages or turns}; a turn
    is {from, value}, {role, content} or {role, text}. `page` says that the record is a share
    page's, whose answers are ChatGPT's rendered HTML; of others the answers are looked at.
    """
    name = f"{posixpath.basename(source)}#{index}"

    def malformed(detail: str) -> Drop:
        return Drop(
            id=name, source=source, stage=Stage.READ, reason=Reason.MALFORMED, detail=detail
        )

    if not isinstance(item, dict):
        return malformed(f"a record must be an object, not {type(item).__name__}")
    # A Parquet file of mixed records has all columns, and nulls in those that a record lacks.
    names = ("conversations", "items", "messages", "turns")
    raw_turns = next((item[n] for n in names if isinstance(item.get(n), list)), None)
    if raw_turns is None:
        return malformed(f"no list named {', '.join(names[:-1])} or {names[-1]}")
    if item.get("id"):
        name = _label(item["id"]) or name

    turns = []
    for position, raw in enumerate(raw_turns):
        turn = _parse_turn(raw)
        if isinstance(turn, str):
            return malformed(f"turn {position}: {turn}")
        turns.append(turn)
    if sum(len(turn.text) for turn in turns) > MAX_CHARACTERS:
        return replace(malformed(f"over {MAX_CHARACTERS:,} characters"), reason=Reason.TOO_LARGE)
    if page or _is_html(turns):
        turns = [replace(turn, html=turn.role == "assistant") for turn in turns]
    return Conversation(
        id=name,
        source=source,
        turns=tuple(turns),
        model=_label(item.get("model")),
        title=_label(item.get("title")),
        origin=_origin(item, raw_turns, page=page),
    )


def _origin(item: Mapping[str, Any], raw_turns: Sequence[Any], *, page: bool) -> Origin:
    """Return where a record came from, as far as its form shows."""
    if page:
        return "page"
    named = raw_turns is item.get("conversations") or raw_turns is item.get("items")
    return "sharegpt" if named and any("from" in turn for turn in raw_turns) else "other"


def _label(value: Any) -> str | None:
    """A short text of the record's, in what UTF-8 can hold."""
    return str(value)[:500].encode("utf-8", "replace").decode() if value else None


def _is_html(turns: Sequence[Turn]) -> bool:
    """Whether a dump's answers are ChatGPT's HTML: each of them is, from end to end.

    One answer alone may be a model's HTML code; ChatGPT's has a paragraph or its own box.
    """
    answers = [turn.text for turn in turns if turn.role == "assistant"]
    return (
        bool(answers)
        and all(_BLOCK_HTML.match(answer) for answer in answers)
        and any("<p>" in a or 'class="markdown' in a for a in answers)
    )


def _parse_turn(raw: Any) -> Turn | str:
    """A turn, or what is wrong with it."""
    if not isinstance(raw, dict):
        return "not an object"
    label, text = raw.get("from"), raw.get("value")
    if label is None:
        label = raw.get("role")
    if text is None:
        text = raw.get("content") if raw.get("content") is not None else raw.get("text")
    if isinstance(text, list):  # OpenAI's content parts
        text = _joined_parts(text)
    role = ROLES.get(label.lower()) if isinstance(label, str) else None
    if role is None:
        return f"unknown role {label!r}"
    if not isinstance(text, str):
        return "no text"
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return "half a surrogate pair, which UTF-8 cannot hold"
    return Turn(role=role, text=text)


def _joined_parts(parts: list[Any]) -> str | None:
    texts: list[str] = []
    for part in parts:
        text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
        if not isinstance(text, str):
            return None
        texts.append(text)
    return "".join(texts)
