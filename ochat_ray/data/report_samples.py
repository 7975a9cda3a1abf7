"""Sampled conversations of the report: as read, as converted, as tokenized."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from ochat_ray.data.report_figures import cut, fidelity_in_words
from ochat_ray.data.statistics import worse_fidelity
from ochat_ray.tokenization.tokenizer import END_OF_TURN

Token = tuple[str, float]

Runs = list[tuple[bool, list[tuple[str, int]]]]
"""Adjacent tokens with and without supervision: pieces with their numbers of tokens."""

_COMPLETE = ""
"""Text after the tokens of a sample that is shown as a whole."""


@dataclass(frozen=True, kw_only=True)
class ShownTurn:
    """One turn: titled texts, and tokens with the text after them; None with an own template."""

    role: str
    texts: list[tuple[str, str]]
    runs: Runs | None
    rest: str


@dataclass(frozen=True, kw_only=True)
class ShownSample:
    """One sample; `runs` and `rest` are of all turns, where a base's own template wrote them."""

    number: int
    id: str
    source: str
    facts: list[str]
    question: str
    turns: list[ShownTurn]
    runs: Runs | None
    rest: str
    hidden: int


def shown_samples(samples: Sequence[dict[str, Any]]) -> list[ShownSample]:
    """Return what the report shows of the samples."""
    return [_sample(number, sample) for number, sample in enumerate(samples, 1)]


def _sample(number: int, sample: dict[str, Any]) -> ShownSample:
    turns = sample["turns"]
    facts = [f"{sample['turn_count']:,} turns", f"{sample['length']:,} tokens"]
    further = sample.get("samples", 1) - 1
    if further:
        facts.append(f"the first of {further + 1:,} samples")
    if sample["split"] == "eval":
        facts.append("held out")
    if worse_fidelity(sample) < 1:
        facts.append(f"fidelity {fidelity_in_words(sample)}")
    own_template = sample.get("own_template", False)
    tokens = None if own_template else tokens_by_turn(sample["tokens"])
    rest = _COMPLETE if own_template else "cut here at the context length"
    if sample["length"] > len(sample["tokens"]):
        rest = "more tokens, not shown"
    elif further:
        rest = "in a further sample"
    # A base's own template may write a turn more than once, or in another order.
    all_tokens = [(piece, weight) for piece, weight in sample["tokens"]] if own_template else None
    return ShownSample(
        number=number,
        id=cut(sample["id"], 80),
        source=cut(sample["source"], 200),
        facts=facts,
        question=cut(next((text for role, _, text in turns if role == "user"), ""), 110),
        turns=[
            _turn(turn, _tokens_at(position, tokens), rest) for position, turn in enumerate(turns)
        ],
        runs=None if all_tokens is None else _runs(all_tokens),
        rest=rest,
        hidden=sample["turn_count"] - len(turns),
    )


def _tokens_at(position: int, tokens: list[list[Token]] | None) -> list[Token] | None:
    if tokens is None:
        return None
    return tokens[position] if position < len(tokens) else []


def _turn(turn: Sequence[Any], tokens: list[Token] | None, rest: str) -> ShownTurn:
    role, original, text = turn
    if original is None or original == text:
        texts = [("Text", text)]
    elif role == "assistant" and "<" in original:
        texts = [("Original HTML", original), ("Markdown", text)]
    else:
        texts = [("As it was read", original), ("As it was kept", text)]
    if tokens and tokens[-1][0] == END_OF_TURN:
        rest = _COMPLETE
    runs = None if tokens is None else _runs(tokens)
    return ShownTurn(role=role, texts=texts, runs=runs, rest=rest)


def tokens_by_turn(tokens: Sequence[Sequence[Any]]) -> list[list[Token]]:
    """Group the tokens by turn, each including its end-of-turn token.

    A person who types the token's name does not end a turn: typed text never becomes that token.
    """
    turns: list[list[Token]] = [[]]
    for piece, weight in tokens:
        turns[-1].append((piece, weight))
        if piece == END_OF_TURN:
            turns.append([])
    return turns


def _runs(tokens: Sequence[Token]) -> Runs:
    grouped = groupby(join_broken(tokens), key=lambda token: token[1] > 0)
    # A line break has no width that would show its shade.
    return [
        (supervised, [(piece.replace("\n", "↵\n"), count) for piece, _, count in run])
        for supervised, run in grouped
    ]


def join_broken(tokens: Sequence[Token]) -> list[tuple[str, float, int]]:
    """Join the parts of characters: (text, weight, number of tokens).

    A token of a byte-level vocabulary may hold a part of a character, which alone decodes to
    U+FFFD; adjacent ones with the same weight are joined.
    """
    joined: list[tuple[str, float, int]] = []
    for piece, weight in tokens:
        broken = "\ufffd" in piece
        if broken and joined and "\ufffd" in joined[-1][0] and joined[-1][1] == weight:
            before, _, count = joined[-1]
            joined[-1] = (before + piece.lstrip("\ufffd"), weight, count + 1)
        else:
            joined.append((piece, weight, 1))
    return joined
