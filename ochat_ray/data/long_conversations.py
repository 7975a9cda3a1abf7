"""Conversations longer than the context: truncated, split at turn boundaries, or dropped.

All functions work on token positions of one encoded conversation. BOS and a system turn form its
head; a round is a user turn with the answers that follow it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from ochat_ray.schema import Role

Long = Literal["cut", "split", "drop"]
CHOICES: tuple[Long, ...] = get_args(Long)

Span = tuple[int, int]
"""First position, and the position after the last."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Positions of an encoded conversation's head and rounds.

    `rounds` follow the head without a gap; `first_turns` has the index of each round's first turn.
    """

    head: int
    rounds: tuple[Span, ...]
    first_turns: tuple[int, ...]

    @property
    def length(self) -> int:
        """Tokens of the complete conversation."""
        return self.rounds[-1][1] if self.rounds else self.head


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """One sample of a conversation: its head and consecutive rounds.

    `body` is the span of the rounds, up to the end of the context; `first_turn` is their first
    turn.
    """

    head: Span
    body: Span
    first_turn: int

    @property
    def length(self) -> int:
        """Tokens of the sample."""
        return self.head[1] - self.head[0] + self.body[1] - self.body[0]


def layout_of(roles: Sequence[Role], ends: Sequence[int], bos: int) -> Layout:
    """Return the layout of a conversation whose turns end before the positions `ends`.

    Args:
        roles: Roles of the turns; only the first may be a system turn.
        ends: One position per turn.
        bos: Number of tokens before the first turn.
    """
    has_system = bool(roles) and roles[0] == "system"
    head = ends[0] if has_system else bos
    rounds: list[Span] = []
    first_turns: list[int] = []
    start = head
    for turn in range(int(has_system), len(roles)):
        if rounds and roles[turn] != "user":
            rounds[-1] = (rounds[-1][0], ends[turn])
        else:
            rounds.append((start, ends[turn]))
            first_turns.append(turn)
        start = ends[turn]
    return Layout(head=head, rounds=tuple(rounds), first_turns=tuple(first_turns))


def pieces(layout: Layout, max_length: int, long: Long) -> list[Piece]:
    """Return the samples of a conversation, each of at most `max_length` tokens.

    "cut" returns one, the beginning of the conversation. "split" starts another sample, again with
    the head, at the first round that does not fit; a round that fits into no sample is truncated,
    in a separate sample. "drop" returns none for a longer conversation.
    """
    whole = _piece(layout, 0, len(layout.rounds), max_length)
    if long == "cut" or layout.length <= max_length:
        return [whole]
    if long == "drop":
        return []
    found = []
    first = 0
    for number, (_, end) in enumerate(layout.rounds):
        if number > first and layout.head + end - layout.rounds[first][0] > max_length:
            found.append(_piece(layout, first, number, max_length))
            first = number
    found.append(_piece(layout, first, len(layout.rounds), max_length))
    return found


def _piece(layout: Layout, first: int, after: int, max_length: int) -> Piece:
    head = min(layout.head, max_length)
    rounds = layout.rounds[first:after]
    start, end = (rounds[0][0], rounds[-1][1]) if rounds else (head, head)
    return Piece(
        head=(0, head),
        body=(start, min(end, start + max_length - head)),
        first_turn=layout.first_turns[first] if rounds else 0,
    )
