"""Sampled conversations of a part, for the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ochat_ray.data.parts.files import Summary
from ochat_ray.data.tokenize import Tokenized
from ochat_ray.data.tokenize_chat import shown_text
from ochat_ray.run_dir import Split

SAMPLES = 50
"""Number of conversations in the report, and limits of each: characters per turn, turns, tokens."""
SHOWN_CHARACTERS, SHOWN_TURNS, SHOWN_TOKENS = 4000, 8, 700


def describe(split: Split, row: dict[str, Any], result: Tokenized, tokenizer: Any) -> Summary:
    """Describe one conversation for the report: as read, as converted, and as tokenized.

    If it has several samples, the first one is shown.
    """
    first = result.samples[0]
    original = row["original"] or [None] * len(row["turns"])
    turns = list(zip(row["turns"], original, strict=True))
    is_system = bool(turns) and turns[0][0]["role"] == "system"
    turns = [*turns[: int(is_system)], *turns[max(result.first_turn, int(is_system)) :]]
    pieces = _pieces(first.input_ids[:SHOWN_TOKENS], tokenizer)
    return {
        "digest": row["digest"],
        "id": row["id"],
        "source": row["source"],
        "split": split,
        "fidelity": row["fidelity"],
        "text_fidelity": row["text_fidelity"],
        "length": len(first.input_ids),
        "samples": len(result.samples),
        "turn_count": len(turns),
        "own_template": hasattr(tokenizer, "chat"),
        "turns": [
            [turn["role"], before, shown_text(turn)[:SHOWN_CHARACTERS]]
            for turn, before in turns[:SHOWN_TURNS]
        ],
        "tokens": [list(t) for t in zip(pieces, first.loss_weights, strict=False)],
    }


def _pieces(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """Return the text of each token.

    Each is decoded after another one, since SentencePiece strips the space from the first token.
    """
    (anchor,) = tokenizer.encode("a", add_special_tokens=False)[-1:]
    before = tokenizer.decode([anchor])
    return [tokenizer.decode([anchor, id]).removeprefix(before) for id in ids]
