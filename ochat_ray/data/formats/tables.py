"""Find records in a decoded value: lists of records under some key, and column-wise tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ochat_ray.data.formats.values import first_of, unknown_names
from ochat_ray.data.record_lists import FILE_LISTS

Keys = Mapping[str, tuple[str, ...]]

_OWN_LISTS = ("chat_messages", "mapping", "linear_conversation", "replies", "row")
"""Keys of ChatGPT's, Claude's and OpenAssistant's records, and of the dataset viewer's rows."""


MAX_DEPTH = 4
"""Maximum nesting of objects that hold records; a NextChat backup has them at the second level."""


def records_in(
    item: Any, keys: Keys, depth: int = MAX_DEPTH
) -> Iterator[tuple[Any, Sequence[str]]]:
    """Yield the records of a decoded value, and the names of the keys next to them.

    The value is a record itself, an object with lists of records or with records under any of its
    keys, a table as an object of columns, or the turns of one conversation.
    """
    if isinstance(item, list) and item and _is_turn(item[0], keys):
        item = {"conversations": item}
    if not isinstance(item, dict):
        yield item, []
        return
    lists = {
        name: value
        for name, value in item.items()
        if name not in _OWN_LISTS and not is_rounds(name, value, keys)
    }
    tables = [name for name, value in lists.items() if _is_table(value, keys)]
    if tables and not _is_record({k: v for k, v in item.items() if k not in tables}, keys):
        beside = unknown_names(item, tables, "file.")
        for name in tables:
            for record in item[name]:
                row = record.get("row") if isinstance(record, dict) else None
                yield (row if isinstance(row, dict) else record), beside
    elif _is_columns(item, keys):
        for values in zip(*item.values(), strict=True):
            yield dict(zip(item, values, strict=True)), []
    elif inner := _objects_with_records(item, keys, depth):
        beside = unknown_names(item, inner, "file.")
        for name in inner:
            for record, names in records_in(item[name], keys, depth - 1):
                if record is item[name] and first_of(record, keys["id"]) is None:
                    record = {"id": name, **record}
                yield record, (*beside, *names)
    else:
        yield item, []


def is_rounds(name: str, value: Any, keys: Keys) -> bool:
    """Return whether a list is one conversation of prompt-completion pairs.

    Pairs under a name commonly used for records, or with ids, are separate records.
    """
    return (
        name in keys["conversations"]
        and name not in FILE_LISTS
        and isinstance(value, list)
        and any(isinstance(row, dict) and is_pair(row, keys) for row in value)
        and all(
            isinstance(row, dict)
            and row.keys().isdisjoint(keys["role"])
            and not _has_list(row, keys["conversations"])
            and first_of(row, keys["id"]) is None
            for row in value
        )
    )


def _objects_with_records(item: Mapping[str, Any], keys: Keys, depth: int) -> list[str]:
    """Return the keys of objects that are records or contain some; empty for a record."""
    if depth == 0 or _is_record(item, keys) or not item.keys().isdisjoint(keys["role"]):
        return []
    return [
        name
        for name, value in item.items()
        if isinstance(value, dict)
        and (
            _is_record(value, keys)
            or any(_is_table(inner, keys) for inner in value.values())
            or _objects_with_records(value, keys, depth - 1)
        )
    ]


def _is_table(value: Any, keys: Keys) -> bool:
    """Return whether a list contains a record and no turn."""
    if not isinstance(value, list):
        return False
    rows = value[:10]
    return not any(_is_turn(row, keys) for row in rows) and any(
        _is_record(row, keys) for row in rows
    )


def _is_record(value: Any, keys: Keys) -> bool:
    if not isinstance(value, dict):
        return False
    names = value.keys()
    if not names.isdisjoint(_OWN_LISTS) and _has_list(value, _OWN_LISTS):
        return True
    role = not names.isdisjoint(keys["role"])
    if not names.isdisjoint(keys["conversations"]):
        # A turn may have data of its own.
        lists = [name for name in keys["conversations"] if name != "data" or not role]
        if _has_list(value, lists):
            return True
    # OpenAssistant's prompt is a tree, TRL's a list of turns.
    return not role and (_has_list(value, ("prompt",)) or is_pair(value, keys))


def _has_list(value: Mapping[str, Any], names: Iterable[str]) -> bool:
    return any(isinstance(value.get(name), (list, dict)) for name in names)


def _is_turn(value: Any, keys: Keys) -> bool:
    return (
        isinstance(value, dict)
        and not value.keys().isdisjoint(keys["role"])
        and not _is_record(value, keys)
    )


def is_pair(item: Mapping[str, Any], keys: Keys) -> bool:
    names = item.keys()
    is_prompt = not (names.isdisjoint(keys["prompt"]) and names.isdisjoint(keys["input"]))
    return is_prompt and not names.isdisjoint(keys["completion"])


def _is_columns(item: Mapping[str, Any], keys: Keys) -> bool:
    """Return whether an object is a column-wise table: lists with one value per row."""
    if not item or not all(isinstance(value, list) and value for value in item.values()):
        return False
    if len({len(value) for value in item.values()}) > 1:
        return False
    name = next((name for name in keys["conversations"] if name in item), None)
    if name is not None:
        # With only one column, texts may be the two sides of a conversation's rounds.
        kinds = (dict, str) if len(item) > 1 else (dict,)
        return all(
            isinstance(row, list) and row and all(isinstance(turn, kinds) for turn in row)
            for row in item[name]
        )
    return is_pair(item, keys) and all(
        isinstance(value, str) for column in item.values() for value in column
    )
