"""Convert one decoded record of any supported format to conversations."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ochat_ray.data.blank_text import shows_nothing
from ochat_ray.data.formats import chatgpt, claude, datasets, tables, trees
from ochat_ray.data.formats.answers import Answers, Shape, mark_html
from ochat_ray.data.formats.columns import keys_of
from ochat_ray.data.formats.tables import Keys
from ochat_ray.data.formats.trees import Branches
from ochat_ray.data.formats.values import RecordError, once_each
from ochat_ray.schema import Conversation, Drop, Origin, Reason, Stage, Turn

MAX_CHARACTERS = 8_000_000
"""Maximum characters of one conversation; a book has a million."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadOptions:
    """User options for reading inputs.

    `answers` is the format of the answers; "auto" detects it per answer. `columns` gives the user's
    names for columns: {"conversations": "dialog", "role": "speaker"}. `branches` selects the path,
    or all paths, of a tree of messages. `tools` is whether the template can represent tools and
    reasoning.
    """

    answers: Answers = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)
    branches: Branches = "current"
    tools: bool = False


DEFAULTS = ReadOptions()


def records_of(
    item: Any, *, source: str, index: int, options: ReadOptions = DEFAULTS, page: bool = False
) -> Iterator[Conversation | Drop]:
    """Yield the conversations of one decoded record, usually one, or a `Drop` with the reason.

    Args:
        item: JSON value; docs/data-format.md lists the formats.
        source: File or archive member that contains it.
        index: Number of the record in its file, from 0; it identifies records without an id.
        options: User options for reading.
        page: Whether the record is from a share page, whose answers may be ChatGPT's rendered HTML.
    """
    name = f"{posixpath.basename(source)}#{index}"
    keys = keys_of(options.columns, tools=options.tools)
    records = [(item, ())] if page else list(tables.records_in(item, keys))
    for number, (record, beside) in enumerate(records):
        own_name = name if len(records) == 1 else f"{name}.{number}"
        try:
            found = _parse(record, keys, options, page)
        except RecordError as error:
            yield Drop(
                id=_id_of(record, keys) or own_name,
                source=source,
                stage=Stage.READ,
                reason=error.reason,
                detail=error.detail,
            )
            continue
        for branch, conversation in enumerate(found):
            branch_name = own_name if len(found) == 1 else f"{own_name}#{branch}"
            yield replace(
                conversation,
                id=conversation.id or branch_name,
                source=source,
                unknown_keys=once_each([*conversation.unknown_keys, *beside])
                if beside
                else conversation.unknown_keys,
            )


def _parse(record: Any, keys: Keys, options: ReadOptions, page: bool) -> list[Conversation]:
    """Return the conversations of one record, complete except for their source.

    Raises:
        RecordError: The record is not a conversation.
    """
    if not isinstance(record, dict):
        raise RecordError(f"a record must be an object, not {type(record).__name__}")
    if chatgpt.is_chatgpt(record):
        return list(map(_complete, chatgpt.conversations_of(record, options.branches)))
    if claude.is_claude(record):
        return list(map(_complete, claude.conversations_of(record, options.branches)))
    shape: Shape = "other"
    if trees.is_open_assistant(record):
        found = trees.open_assistant(record, keys, options.branches)
    else:
        conversation, shape = datasets.conversation_of(record, keys)
        found = [replace(conversation, origin=_origin(shape, page))]
    return [
        replace(c, turns=mark_html(c.turns, "page" if page else shape, options.answers))
        for c in map(_complete, found)
    ]


def _origin(shape: Shape, page: bool) -> Origin:
    if page:
        return "page"
    return "sharegpt" if shape == "dump" else "other"


def _complete(conversation: Conversation) -> Conversation:
    """Check the size, remove empty system turns and join those at the start.

    Raises:
        RecordError: The conversation is too large, or its system turns differ in weight.
    """
    turns = conversation.turns
    if sum(len(turn.text) for turn in turns) > MAX_CHARACTERS:
        raise RecordError(f"over {MAX_CHARACTERS:,} characters", Reason.TOO_LARGE)
    if not any(turn.role == "system" for turn in turns):
        return conversation
    turns = tuple(turn for turn in turns if turn.role != "system" or not shows_nothing(turn.text))
    count = next((n for n, turn in enumerate(turns) if turn.role != "system"), len(turns))
    return replace(conversation, turns=(*_joined(turns[:count]), *turns[count:]))


def _joined(system: Sequence[Turn]) -> Sequence[Turn]:
    if len(system) < 2:
        return system
    if len({turn.loss_weight for turn in system}) > 1:
        raise RecordError("system turns of different loss weights")
    texts = dict.fromkeys(turn.text for turn in system)
    return [replace(system[0], text="\n\n".join(texts))]


def _id_of(record: Any, keys: Keys) -> str | None:
    return datasets.id_of(record, keys) if isinstance(record, dict) else None
