"""Conversation digests, for exact duplicates and for the train/eval split."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from ochat_ray.run_dir import Split
from ochat_ray.schema import Turn


def digest(turns: Iterable[Turn], tools: str = "") -> str:
    """Return a 128-bit digest (32 hex characters) of length-framed roles and texts.

    Reasoning, calls and tools are part of it where there are any. Because of the framing, no two
    different conversations hash the same bytes.
    """
    state = hashlib.blake2b(digest_size=16)
    for turn in turns:
        further = ("", repr(_further(turn))) if not turn.is_plain else ()
        for field in (turn.role, turn.text, *further):
            data = field.encode()
            state.update(len(data).to_bytes(8, "little"))
            state.update(data)
    if tools:
        state.update(b"tools" + tools.encode())
    return state.hexdigest()


def split_of(conversation_digest: str, *, eval_ratio: float, seed: int) -> Split:
    """Return the split of a conversation, which depends only on its content."""
    state = hashlib.blake2b(f"{seed}:{conversation_digest}".encode(), digest_size=8)
    fraction = int.from_bytes(state.digest(), "little") / 2**64
    return "eval" if fraction < eval_ratio else "train"


def _further(turn: Turn) -> tuple[object, ...]:
    calls = [(call.id, call.name, call.arguments) for call in turn.tool_calls]
    return turn.reasoning, calls, turn.tool_call_id, turn.name
