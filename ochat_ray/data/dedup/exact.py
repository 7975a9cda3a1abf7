"""Conversation digests, for exact duplicates and for the train/eval split."""

from __future__ import annotations

import hashlib
import math
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
    return "eval" if _fraction(conversation_digest, seed) < eval_ratio else "train"


def ratio_for_some(digests: Iterable[str], *, eval_ratio: float, seed: int) -> float:
    """Return the share to hold out so that a few of these conversations are held out.

    That is `eval_ratio` where it is enough for 4 of them, or a quarter of fewer than 16; 0 stays 0.
    """
    fractions = sorted(_fraction(digest, seed) for digest in set(digests))
    few = min(4, len(fractions) // 4)
    if not eval_ratio or not few:
        return eval_ratio
    return max(eval_ratio, math.nextafter(fractions[few - 1], 1.0))


def _fraction(conversation_digest: str, seed: int) -> float:
    """Return a number in [0, 1) that depends on the content and the seed."""
    state = hashlib.blake2b(f"{seed}:{conversation_digest}".encode(), digest_size=8)
    return int.from_bytes(state.digest(), "little") / 2**64


def _further(turn: Turn) -> tuple[object, ...]:
    calls = [(call.id, call.name, call.arguments) for call in turn.tool_calls]
    return turn.reasoning, calls, turn.tool_call_id, turn.name
