"""Paths through trees of messages, and OpenAssistant's trees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from ochat_ray.data.formats.turns import parse_turn
from ochat_ray.data.formats.values import (
    RecordError,
    as_dict,
    as_list,
    label,
    once_each,
    unknown_names,
)
from ochat_ray.schema import Conversation, Reason

Branches = Literal["current", "all"]

MAX_BRANCHES = 1_000
MAX_PATH_NODES = 200_000
"""Limit over all branches of one record: a crafted tree can have paths a million times its size."""

OTHER_BRANCH = "other branch"
"""Name under which unread branches are counted."""


def path_to(leaf: str, parents: Mapping[str, str | None]) -> list[str]:
    """Return the ids from the root to a leaf.

    Raises:
        RecordError: The tree has a cycle.
    """
    path: list[str] = []
    seen: set[str] = set()
    node: str | None = leaf
    while node is not None and node in parents:
        if node in seen:
            raise RecordError("the tree of messages has a cycle")
        seen.add(node)
        path.append(node)
        node = parents[node]
    return path[::-1]


def leaves_of(parents: Mapping[str, str | None]) -> list[str]:
    """Return the ids that are not a parent, in the order of the record."""
    inner = {parent for parent in parents.values() if parent is not None}
    return [node for node in parents if node not in inner]


def paths_of(
    parents: Mapping[str, str | None], current: str | None, branches: Branches
) -> list[list[str]]:
    """Return the path to the current leaf, or to all leaves, each from the root.

    Raises:
        RecordError: The tree has a cycle, no leaf, or too many branches.
    """
    if branches == "current" and current is not None:
        return [path_to(current, parents)]
    leaves = leaves_of(parents)
    if not leaves:
        raise RecordError("the tree of messages has a cycle" if parents else "no messages")
    if branches == "current":
        return [path_to(leaves[-1], parents)]
    if len(leaves) > MAX_BRANCHES:
        raise RecordError(f"over {MAX_BRANCHES:,} branches", Reason.TOO_LARGE)
    paths: list[list[str]] = []
    nodes = 0
    for leaf in leaves:
        path = path_to(leaf, parents)
        nodes += len(path)
        if nodes > MAX_PATH_NODES:
            raise RecordError(f"over {MAX_PATH_NODES:,} messages in branches", Reason.TOO_LARGE)
        paths.append(path)
    return paths


def is_open_assistant(item: Mapping[str, Any]) -> bool:
    """Return whether a record is an OpenAssistant tree: a prompt or a message with replies."""
    return isinstance(as_dict(item.get("prompt")).get("replies"), list) or (
        isinstance(item.get("replies"), list) and "text" in item
    )


def open_assistant(
    item: Mapping[str, Any], keys: Mapping[str, tuple[str, ...]], branches: Branches
) -> list[Conversation]:
    """Return the conversations of a tree of nested `replies`.

    The current path takes the best-ranked reply of each message (`rank` counts from 0; replies
    without a rank come last, in the order of the file). Deleted messages are removed with all
    replies below them.

    Raises:
        RecordError: A message cannot be read.
    """
    root = as_dict(item.get("prompt")) if "prompt" in item else dict(item)
    if root.get("deleted") is True:
        raise RecordError("the first message of the tree is deleted")
    nodes: dict[str, dict[str, Any]] = {}
    parents: dict[str, str | None] = {}
    best: dict[str, str] = {}
    deleted = 0
    todo: list[tuple[dict[str, Any], str | None]] = [(root, None)]
    while todo:
        node, parent = todo.pop()
        name = label(node.get("message_id")) or f"message {len(nodes)}"
        if name in nodes:
            raise RecordError(f"message {name} occurs twice")
        nodes[name], parents[name] = node, parent
        replies = [as_dict(reply) for reply in as_list(node.get("replies"))]
        kept = [reply for reply in replies if reply.get("deleted") is not True]
        deleted += len(replies) - len(kept)
        # The best-ranked is popped last of its siblings and so stays in `best`.
        for reply in sorted(kept, key=_rank)[::-1]:
            todo.append((reply, name))
        if parent is not None:
            best.setdefault(parent, name)
    current = next(iter(nodes))
    while current in best:
        current = best[current]
    leaf_count = len(leaves_of(parents))
    record = label(item.get("message_tree_id")) or label(root.get("message_id")) or ""
    known = {"message_tree_id", "prompt"} if "prompt" in item else set(root)
    found = []
    for path in paths_of(parents, current, branches):
        parsed = [parse_turn(_message(nodes[name]), keys) for name in path]
        unknown = [name for turn in parsed for name in turn.unknown]
        left_out = ["deleted message"] * deleted
        if branches == "current":
            left_out += [OTHER_BRANCH] * (leaf_count - 1)
        found.append(
            Conversation(
                id=f"{record}#{path[-1]}" if branches == "all" and record else record,
                source="",
                turns=tuple(turn.turn for turn in parsed),
                unknown_keys=once_each([*unknown_names(item, known), *unknown]),
                left_out=tuple(left_out),
            )
        )
    return found


_TREE_KEYS = frozenset({"message_id", "parent_id", "replies", "rank", "deleted", "message_tree_id"})


def _message(node: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in node.items() if name not in _TREE_KEYS}


def _rank(reply: Mapping[str, Any]) -> float:
    rank = reply.get("rank")
    return rank if isinstance(rank, (int, float)) and rank == rank else float("inf")
