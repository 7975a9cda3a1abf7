"""Exchange of Python objects between all workers, which call these functions together."""

from __future__ import annotations

from typing import Any

from torch import distributed


def gather(value: Any) -> list[Any]:
    """Return the values of all workers, by rank."""
    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, value)
    return found


def agree(value: Any) -> Any:
    """Return the first worker's value on all workers."""
    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]


def join(value: dict[str, int]) -> dict[str, int]:
    """Return the entries of all workers' dictionaries, sorted by key."""
    return dict(sorted(item for found in gather(value) for item in found.items()))
