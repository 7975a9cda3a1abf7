"""Exact duplicates, and the split between training and evaluation: hashes of the content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from ochat_ray.run_dir import Split
from ochat_ray.schema import Turn


def digest(turns: Iterable[Turn]) -> str:
    """128-bit digest (32 hex characters) over length-framed roles and texts.

    Framed, so that no two different conversations hash the same bytes.
    """
    state = hashlib.blake2b(digest_size=16)
    for turn in turns:
        for field in (turn.role, turn.text):
            data = field.encode()
            state.update(len(data).to_bytes(8, "little"))
            state.update(data)
    return state.hexdigest()


def split_of(conversation_digest: str, *, eval_ratio: float, seed: int) -> Split:
    """Which split a conversation is in: decided by its content, never by its place."""
    state = hashlib.blake2b(f"{seed}:{conversation_digest}".encode(), digest_size=8)
    fraction = int.from_bytes(state.digest(), "little") / 2**64
    return "eval" if fraction < eval_ratio else "train"
