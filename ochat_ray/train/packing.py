"""Which conversations every worker trains on in every step, in packs without padding.

Pure and deterministic: every worker computes the same plan from (seed, epoch) and takes its own
row. Packing is best-fit decreasing (Johnson, 1974), in windows of shuffled conversations so that
one plan needs bounded memory and consecutive steps stay a random sample.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np

from ochat_ray.errors import UserError

Pack = list[int]
Plan = list[list[list[Pack]]]

WINDOW = 1 << 14
"""Conversations that are packed together in token mode."""


def plan(
    lengths: Sequence[int] | np.ndarray,
    *,
    world_size: int,
    max_tokens: int,
    sequences_per_step: int | None = None,
    seed: int,
    epoch: int,
) -> Plan:
    """The packs of an epoch as steps[rank[pack[index]]].

    Every index occurs exactly once. Within a step every rank has the same number of packs, and no
    pack has more than `max_tokens` tokens; where there is nothing left for a rank its pack is
    empty, and the rank takes part in the step with no conversation.

    Args:
        lengths: tokens of each conversation.
        world_size: number of workers.
        max_tokens: tokens that fit in one pack, the unit of a forward pass.
        sequences_per_step: conversations in every step but the last; None fills one pack a worker.
        seed: of the run.
        epoch: from 0; another epoch is another order.

    Raises:
        UserError: a conversation is longer than a pack, or a number is not positive.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    if (
        world_size < 1
        or max_tokens < 1
        or (sequences_per_step is not None and sequences_per_step < 1)
    ):
        raise UserError("world_size, max_tokens and sequences_per_step must be positive")
    if lengths.size and int(lengths.max()) > max_tokens:
        raise UserError(
            f"a conversation has {int(lengths.max()):,} tokens but a pack holds {max_tokens:,}; "
            "raise --max-tokens or prepare with a smaller --max-length"
        )
    order = np.random.default_rng([seed, epoch]).permutation(lengths.size)
    if sequences_per_step is None:
        return _full_packs(order, lengths, world_size, max_tokens, [seed, epoch])
    return [
        _share(order[start : start + sequences_per_step], lengths, world_size, max_tokens)
        for start in range(0, lengths.size, sequences_per_step)
    ]


def _full_packs(
    order: np.ndarray, lengths: np.ndarray, world_size: int, max_tokens: int, seed: list[int]
) -> Plan:
    """One pack a worker and step. What a window cannot fill goes into the next one."""
    steps: Plan = []
    rest: Pack = []
    for start in range(0, order.size, WINDOW):
        packs = _best_fit([*rest, *order[start : start + WINDOW].tolist()], lengths, max_tokens)
        rest = []
        if start + WINDOW < order.size:
            # The emptiest pack of a window waits for the next window's short conversations.
            packs.sort(key=lambda pack: -int(lengths[pack].sum()))
            spare = len(packs) % world_size or world_size
            rest = [index for pack in packs[-spare:] for index in pack]
            packs = packs[:-spare]
        else:
            packs.sort(key=lambda pack: -int(lengths[pack].sum()))
        whole = len(packs) - len(packs) % world_size
        full = packs[:whole]
        # Packing sorts by length; steps must not.
        np.random.default_rng([*seed, start]).shuffle(full)
        steps += [
            [[pack] for pack in full[first : first + world_size]]
            for first in range(0, whole, world_size)
        ]
        if packs[whole:]:
            last = np.asarray([index for pack in packs[whole:] for index in pack])
            steps.append(_share(last, lengths, world_size, max_tokens))
    return steps


def _share(
    indices: np.ndarray, lengths: np.ndarray, world_size: int, max_tokens: int
) -> list[list[Pack]]:
    """Split one step's conversations between the ranks, longest first to the least loaded."""
    ranks: list[Pack] = [[] for _ in range(world_size)]
    loads = [0] * world_size
    for index in sorted(indices.tolist(), key=lambda i: (-int(lengths[i]), i)):
        rank = loads.index(min(loads))
        ranks[rank].append(index)
        loads[rank] += int(lengths[index])
    packed = [_best_fit(rank, lengths, max_tokens) for rank in ranks]
    most = max(len(packs) for packs in packed)
    return [packs + [[] for _ in range(most - len(packs))] for packs in packed]


def _best_fit(indices: list[int], lengths: np.ndarray, max_tokens: int) -> list[Pack]:
    """Best-fit decreasing: each conversation goes where it leaves the least room."""
    packs: list[Pack] = []
    room: list[tuple[int, int]] = []  # (free tokens, pack), sorted
    for index in sorted(indices, key=lambda i: (-int(lengths[i]), i)):
        length = int(lengths[index])
        place = bisect_left(room, (length, -1))
        if place == len(room):
            packs.append([index])
            free, pack = max_tokens, len(packs) - 1
        else:
            free, pack = room.pop(place)
            packs[pack].append(index)
        if free > length:
            insort(room, (free - length, pack))
    return packs
