"""Assignment of conversations to steps, workers and packs, without padding.

- Pure and deterministic: every worker computes the same steps from (seed, epoch) and takes its row.
- The conversations of a step do not depend on the number of workers, only their assignment to
  workers does. So a run that resumes with another number of workers trains on the same steps.
- Conversations are assigned to ranks longest processing time first (Graham, 1969) and to packs
  best-fit decreasing (Johnson, 1974), within windows of the shuffled epoch. So memory does not
  grow with the epoch, and consecutive steps remain a random sample.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict, Unpack

import numpy as np

from ochat_ray.errors import UserError

Pack = list[int]
StepPacks = list[list[Pack]]
Plan = list[StepPacks]

WINDOW = 1 << 14
"""Conversations per window; more if a few steps need more."""

SPREAD = 0.75
"""Share of the tokens, in the longest conversations, that is spread evenly over a window's packs.

With a larger share packs are less full. With a smaller one some packs have only long conversations
and others only short ones, so that steps are not a random sample.
"""

SPREAD_FILL = 0.999
"""Minimum fill of packs with spreading; below it, packs without spreading are tried."""

SIMILAR_STEPS = 4
"""Steps whose packs are sorted by cost together, so that packs of a step cost about the same."""

ATTENTION_TOKENS = 1 << 16
"""Conversation length at which attention costs as much as everything else, about LLaMA-13B's.

A token takes 6 N FLOPs for N parameters, and 6 layers x hidden x n more for causal attention in a
conversation of n tokens (Kaplan et al., 2020; Chowdhery et al., 2022, appendix B). They are equal
at n = N / (layers x hidden): 63,500 for LLaMA-13B, 51,400 for LLaMA-7B.
"""


def cost(lengths: np.ndarray, attention_tokens: int = ATTENTION_TOKENS) -> np.ndarray:
    """Return the costs of training on conversations of these lengths in tokens; same shape.

    A cost is n x (1 + n / attention_tokens), in units of a token's cost without attention.
    """
    lengths = np.asarray(lengths, dtype=np.float64)
    return lengths * (1 + lengths / attention_tokens)


class Options(TypedDict):
    """Arguments of `steps`, for `plan` and `count_steps`."""

    world_size: int
    max_tokens: int
    sequences_per_step: NotRequired[int | None]
    packs_per_step: NotRequired[int | None]
    attention_tokens: NotRequired[int]
    seed: int
    epoch: int


def plan(lengths: Sequence[int] | np.ndarray, **options: Unpack[Options]) -> Plan:
    """Return all steps of an epoch, as steps[rank[pack[index]]]; see `steps`."""
    return list(steps(lengths, **options))


def steps(
    lengths: Sequence[int] | np.ndarray,
    *,
    world_size: int,
    max_tokens: int,
    sequences_per_step: int | None = None,
    packs_per_step: int | None = None,
    attention_tokens: int = ATTENTION_TOKENS,
    seed: int,
    epoch: int,
) -> Iterator[StepPacks]:
    """Return an iterator over the steps of an epoch, each as rank[pack[index]].

    Every index occurs exactly once per epoch. Within a step every rank has the same number of
    packs, and no pack has more than `max_tokens` tokens; a rank without conversations gets empty
    packs. Memory is that of one window, in addition to `lengths` and 8 bytes per conversation for
    their order.

    Args:
        lengths: tokens of each conversation, shape (conversations,).
        world_size: number of workers; affects the assignment to workers, not the content of steps.
        max_tokens: maximum tokens per pack, the unit of a forward pass.
        sequences_per_step: conversations in every step but the last.
        packs_per_step: instead, packs over all ranks in every step but the last, as full as
            possible. Without both it is `world_size`, and only then the content of steps depends
            on the number of workers.
        attention_tokens: length in tokens at which attention costs as much as everything else.
        seed: seed of the run.
        epoch: number from 0; each epoch has another order.

    Raises:
        UserError: at the call, if a conversation is longer than a pack, a number is not positive,
            or both `sequences_per_step` and `packs_per_step` are given.
    """
    if sequences_per_step is not None and packs_per_step is not None:
        raise UserError("give sequences_per_step or packs_per_step, not both")
    numbers = (world_size, max_tokens, sequences_per_step, packs_per_step, attention_tokens)
    if any(number is not None and number < 1 for number in numbers):
        raise UserError("workers, tokens, sequences and packs must be positive numbers")
    lengths = np.asarray(lengths)
    if lengths.size and int(lengths.max()) > max_tokens:
        raise UserError(
            f"a conversation has {int(lengths.max()):,} tokens but a pack holds {max_tokens:,}; "
            "raise --max-tokens or prepare with a smaller --max-length"
        )
    rng = np.random.default_rng([seed, epoch])
    shuffled = _Epoch(lengths, rng, world_size, max_tokens, attention_tokens)
    if sequences_per_step is not None:
        return _steps_of_sequences(shuffled, sequences_per_step)
    return _steps_of_packs(shuffled, packs_per_step or world_size)


def count_steps(lengths: Sequence[int] | np.ndarray, **options: Unpack[Options]) -> int:
    """Return the number of steps that `steps` yields for the same arguments.

    Immediate with `sequences_per_step`. Otherwise all steps are computed, and their number differs
    slightly between epochs.

    Raises:
        UserError: as `steps`.
    """
    all_steps = steps(lengths, **options)
    if sequences := options.get("sequences_per_step"):
        return -(-len(lengths) // sequences)
    return sum(1 for _ in all_steps)


@dataclass(frozen=True)
class _Epoch:
    """Settings that are the same for all steps of an epoch."""

    lengths: np.ndarray
    rng: np.random.Generator
    world_size: int
    max_tokens: int
    attention_tokens: int


def _steps_of_sequences(epoch: _Epoch, sequences: int) -> Iterator[StepPacks]:
    """Yield steps with the same number of conversations, computed many at a time."""
    order = epoch.rng.permutation(epoch.lengths.size)
    full = order.size - order.size % sequences
    rows = max(1, 2 * WINDOW // max(sequences, epoch.world_size))
    for start in range(0, full, rows * sequences):
        window = order[start : min(full, start + rows * sequences)]
        yield from _assign_sequences(epoch, window.reshape(-1, sequences))
    if full < order.size:
        yield from _assign_sequences(epoch, order[None, full:])


def _assign_sequences(epoch: _Epoch, window: np.ndarray) -> Iterator[StepPacks]:
    """Assign the conversations of each step, indices of shape (steps, conversations), to ranks.

    The longest remaining conversation goes to the least-loaded rank, and there to the pack where
    it leaves the least space. One pass over the columns does this for all steps at once.
    """
    world_size, max_tokens = epoch.world_size, epoch.max_tokens
    tokens = epoch.lengths[window].astype(np.int64)
    longest_first = np.argsort(-tokens, axis=1, kind="stable")
    window = np.take_along_axis(window, longest_first, axis=1).T
    tokens = np.ascontiguousarray(np.take_along_axis(tokens, longest_first, axis=1).T)
    costs = cost(tokens, epoch.attention_tokens)
    rows = np.arange(window.shape[1])
    load = np.zeros((rows.size, world_size))
    empty = np.full((rows.size, world_size, 1), max_tokens)
    room = empty  # (steps, ranks, packs); the last pack of every rank is empty
    ranks, packs = np.empty_like(tokens), np.empty_like(tokens)
    for column, needed in enumerate(tokens):
        rank = ranks[column] = load.argmin(axis=1)
        load[rows, rank] += costs[column]
        free = room[rows, rank]
        pack = packs[column] = np.where(free >= needed[:, None], free, max_tokens + 1).argmin(1)
        if (pack == room.shape[2] - 1).any():
            room = np.concatenate([room, empty], axis=2)
        room[rows, rank, pack] -= needed
    depth = room.shape[2]
    lists = _split(window, (rows * world_size + ranks) * depth + packs, room.size)
    for row, used in enumerate((packs.max(axis=0) + 1).tolist()):
        firsts = range(row * world_size * depth, (row + 1) * world_size * depth, depth)
        yield [lists[first : first + used] for first in firsts]


def _steps_of_packs(epoch: _Epoch, packs_per_step: int) -> Iterator[StepPacks]:
    """Yield steps with the same number of full packs, which have similar costs within a step."""
    for indices, packs in _full_packs(epoch, packs_per_step):
        costs = np.bincount(packs, cost(epoch.lengths[indices], epoch.attention_tokens))
        lists = _split(indices, packs, costs.size)
        if costs.size >= packs_per_step:
            mixed = epoch.rng.permutation(costs.size)
            group = np.arange(costs.size) // (SIMILAR_STEPS * packs_per_step)
            costliest_first = mixed[np.lexsort((-costs[mixed], group))]
            for step in epoch.rng.permutation(costliest_first.reshape(-1, packs_per_step)):
                yield _assign_packs([lists[i] for i in step], costs[step], epoch.world_size)
            continue
        # The last step: equal shares for all ranks, unless that needs more packs.
        (shared,) = _assign_sequences(epoch, indices[None])
        step = np.argsort(-costs, kind="stable")
        assigned = _assign_packs([lists[i] for i in step], costs[step], epoch.world_size)
        yield shared if len(shared[0]) <= len(assigned[0]) else assigned


def _full_packs(epoch: _Epoch, packs_per_step: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield indices of conversations and their packs, numbered from 0, for a multiple of a step.

    The emptiest packs of a window, at most those of one step, are dissolved and packed again with
    the next window; those of the last window come last.
    """
    lengths, max_tokens = epoch.lengths, epoch.max_tokens
    order = epoch.rng.permutation(lengths.size)
    few_steps = 4 * packs_per_step * max_tokens * lengths.size // max(1, int(lengths.sum()))
    size = max(WINDOW, few_steps)
    waiting = order[:0]
    for start in range(0, order.size, size):
        indices = np.concatenate([waiting, order[start : start + size]])
        tokens = lengths[indices].astype(np.int64)
        longest_first = np.argsort(-tokens, kind="stable")
        indices, tokens = indices[longest_first], tokens[longest_first]
        opened = _fill(tokens, max_tokens, SPREAD)
        if tokens.sum() < SPREAD_FILL * max_tokens * (1 + opened.max()):
            # With few conversations per pack, best-fit decreasing for all of them fills better.
            opened = min(opened, _fill(tokens, max_tokens, 0.0), key=np.max)
        fill = np.bincount(opened, tokens)
        fullest_first = np.argsort(-fill, kind="stable")
        packs = np.argsort(fullest_first)[opened]
        full = (fill.size - 1) // packs_per_step * packs_per_step
        if full:
            yield indices[packs < full], packs[packs < full]
        waiting, last = indices[packs >= full], packs[packs >= full] - full
    if waiting.size:
        yield waiting, last


def _fill(tokens: np.ndarray, max_tokens: int, spread: float) -> np.ndarray:
    """Return the pack of each conversation, sorted longest first; both of shape (conversations,).

    The longest ones, with the share `spread` of the tokens, go to the pack with the most space, so
    that they are spread evenly; the others go to the pack where they leave the least space.
    """
    running = tokens.cumsum()
    long = int(np.searchsorted(running, spread * running[-1])) if spread else 0
    opened = int(running[-1]) // max_tokens
    # Space and pack in one number, space x count + pack, for a sorted list of integers.
    count, shortest = tokens.size, int(tokens[-1]) * tokens.size
    rooms = list(range(max_tokens * count, max_tokens * count + opened))
    packs = []
    for number, needed in enumerate((tokens * count).tolist()):
        if number < long and rooms and rooms[-1] >= needed:
            room = rooms.pop()
        elif (place := bisect_left(rooms, needed)) < len(rooms):
            room = rooms.pop(place)
        else:
            room = max_tokens * count + opened
            opened += 1
        packs.append(room % count)
        room -= needed
        if room >= shortest:
            insort(rooms, room)
    return np.array(packs)


def _assign_packs(packs: list[Pack], costs: np.ndarray, world_size: int) -> StepPacks:
    """Assign packs, costliest first, to the ranks in rounds, the costliest to the least loaded."""
    ranks: StepPacks = [[] for _ in range(world_size)]
    load = [0.0] * world_size
    assigned = iter(zip(packs, costs.tolist(), strict=True))
    for _ in range(0, len(packs), world_size):
        for rank in sorted(range(world_size), key=load.__getitem__):
            pack, pack_cost = next(assigned, ([], 0.0))
            ranks[rank].append(pack)
            load[rank] += pack_cost
    return ranks


def _split(values: np.ndarray, keys: np.ndarray, count: int) -> list[Pack]:
    """Return lists of the values of each key in range(count); both arrays have the same shape."""
    keys = keys.ravel()
    values_by_key = values.ravel()[np.argsort(keys, kind="stable")].tolist()
    ends = np.cumsum(np.bincount(keys, minlength=count)).tolist()
    return [values_by_key[a:b] for a, b in zip([0, *ends], ends, strict=False)]
