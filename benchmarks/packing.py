"""Pack utilization, balance between ranks, and planning time.

    python benchmarks/packing.py lengths.json      a JSON list of conversation lengths in tokens

Compared in the same run: for the share of real tokens, batches of conversations of similar length,
padded to the longest of each; for balance, the same conversations assigned to the ranks in turn;
for time, the allocator of 2023 (multipack), which finds by bisection the longest run of
conversations that first-fit decreasing fits into a step's packs. It is also plain Python, without
numba.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
import tracemalloc
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ochat_ray.train.packing import StepPacks, cost, plan, steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lengths", type=Path)
    parser.add_argument("--world-size", type=int, default=8)
    parser.add_argument("--conversations", type=int, default=10_000_000, help="for the timing")
    arguments = parser.parse_args()
    lengths = np.array(json.loads(arguments.lengths.read_text()))
    world_size = arguments.world_size
    print(f"{lengths.size:,} conversations, {lengths.sum():,} tokens, {world_size} ranks")
    for max_tokens in (8192, 12288, 16384):
        compare_quality(lengths, world_size, max_tokens)
    for longest in (2048, 8192):
        compare_time(arguments.conversations, longest, world_size)


def compare_quality(lengths: np.ndarray, world_size: int, max_tokens: int) -> None:
    print(f"packs of {max_tokens:,}")
    of_packs = plan(lengths, world_size=world_size, max_tokens=max_tokens, seed=0, epoch=0)
    print(
        f"  full packs: {100 * packed_share(lengths, world_size, max_tokens):.2f}% real tokens "
        f"(padded, grouped by length: {100 * padded_share(lengths, max_tokens):.2f}%), "
        f"cost {100 * balance(cost(lengths), of_packs[:-1]):.2f}% balanced, "
        f"{len(of_packs)} steps"
    )
    of_sequences = plan(
        lengths,
        world_size=world_size,
        max_tokens=max_tokens,
        sequences_per_step=128,
        seed=0,
        epoch=0,
    )
    in_turn = [deal_in_turn(step, world_size) for step in of_sequences]
    print(
        f"  128 conversations per step: tokens "
        f"{100 * balance(lengths, of_sequences):.2f}% balanced "
        f"(dealt in turn: {100 * balance(lengths, in_turn):.2f}%), "
        f"cost {100 * balance(cost(lengths), of_sequences):.2f}% "
        f"({100 * balance(cost(lengths), in_turn):.2f}%), {len(of_sequences)} steps"
    )


def compare_time(count: int, longest: int, world_size: int) -> None:
    rng = np.random.default_rng(0)
    lengths = np.minimum(rng.lognormal(6.8, 0.9, count).astype(np.int32) + 1, longest)
    few = lengths[: count // 20]  # tracemalloc is slow
    print(f"{count:,} conversations of at most {longest:,} tokens, packs of 8,192")
    for name, sequences in (("128 conversations per step", 128), ("full packs", None)):
        arguments: dict[str, Any] = {"world_size": world_size, "max_tokens": 8192}
        arguments |= {"sequences_per_step": sequences, "seed": 0, "epoch": 0}
        all_steps, whole_plan = partial(steps, **arguments), partial(plan, **arguments)
        print(
            f"  {name}: plan {timed(whole_plan, lengths)}, "
            f"steps one at a time {timed(all_steps, lengths)}"
        )
        print(
            f"    peak memory for {few.size:,}: plan {peak_mib(whole_plan, few):.0f} MiB, "
            f"steps {peak_mib(all_steps, few):.0f} MiB"
        )
    peer = partial(allocate_2023, world_size=world_size, max_tokens=8192)
    print(f"  full packs as in 2023: {timed(peer, lengths)}")
    theirs = few.sum() / (len(peer(few)) * world_size * 8192)
    print(
        f"  real tokens for {few.size:,}: {100 * packed_share(few, world_size, 8192):.2f}% "
        f"(as in 2023: {100 * theirs:.2f}%)"
    )
    print(f"  peak memory of this process: {rss_peak_mib():,.0f} MiB")


def timed(function: Callable, lengths: np.ndarray) -> str:
    """Measure wall-clock and CPU seconds until everything that `function` plans was consumed."""
    wall, cpu = time.perf_counter(), time.process_time()
    planned = function(lengths)
    if isinstance(planned, Iterator):
        deque(planned, maxlen=0)
    return f"{time.perf_counter() - wall:.1f} s ({time.process_time() - cpu:.1f} s CPU)"


def peak_mib(function: Callable, lengths: np.ndarray) -> float:
    """Measure the peak memory that planning allocates, by tracemalloc."""
    tracemalloc.start()
    timed(function, lengths)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 2**20


def rss_peak_mib() -> float:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def packed_share(lengths: np.ndarray, world_size: int, max_tokens: int) -> float:
    """Return the share of real tokens in full packs, except for the last step."""
    *full, _ = plan(lengths, world_size=world_size, max_tokens=max_tokens, seed=0, epoch=0)
    tokens = [shares(lengths, step).sum() for step in full]
    return float(np.mean(tokens) / (world_size * max_tokens))


def balance(values: np.ndarray, of_steps: list[StepPacks]) -> float:
    """Return the mean divided by the maximum of the ranks' sums, averaged over the steps."""
    loads = [shares(values, step) for step in of_steps]
    return float(np.mean([load.mean() / load.max() for load in loads]))


def shares(values: np.ndarray, step: StepPacks) -> np.ndarray:
    """Return the sum of the values of each rank's conversations in a step, shape (ranks,)."""
    return np.array([values[[i for pack in packs for i in pack]].sum() for packs in step])


def deal_in_turn(step: StepPacks, world_size: int) -> StepPacks:
    """Assign the conversations of a step to the ranks in turn."""
    indices = sorted(i for packs in step for pack in packs for i in pack)
    return [[indices[rank::world_size]] for rank in range(world_size)]


def padded_share(lengths: np.ndarray, max_tokens: int) -> float:
    """Return the share of real tokens in padded batches of at most `max_tokens`.

    Batches are formed by length as in 2023: shuffled, then sorted within groups of 50 batches.
    """
    batch = max_tokens // int(lengths.max())
    order = np.random.default_rng(0).permutation(lengths.size)
    slots = 0
    for start in range(0, lengths.size, 50 * batch):
        group = np.sort(lengths[order[start : start + 50 * batch]])
        for first in range(0, group.size, batch):
            members = group[first : first + batch]
            slots += int(members.max()) * members.size
    return float(lengths.sum() / slots)


def allocate_2023(lengths: np.ndarray, world_size: int, max_tokens: int) -> list[list[list[int]]]:
    """Return steps of one pack per rank, each with the longest run of conversations that fits."""
    order = np.random.default_rng(0).permutation(lengths.size).tolist()
    tokens = lengths.tolist()
    planned = []
    start = 0
    while start < len(order):
        best = first_fit(order[start : start + 1], tokens, world_size, max_tokens)
        fits, too_many = 1, min(len(order) - start, 100 * world_size) + 1
        while too_many - fits > 1:
            middle = (fits + too_many) // 2
            packs = first_fit(order[start : start + middle], tokens, world_size, max_tokens)
            if packs:
                fits, best = middle, packs
            else:
                too_many = middle
        planned.append(best)
        start += fits
    return planned


def first_fit(
    indices: list[int], tokens: list[int], count: int, max_tokens: int
) -> list[list[int]]:
    """Return this many packs by first-fit decreasing; None if the conversations do not fit."""
    if sum(tokens[i] for i in indices) > count * max_tokens:
        return []
    room = [max_tokens] * count
    packs: list[list[int]] = [[] for _ in room]
    for index in sorted(indices, key=tokens.__getitem__, reverse=True):
        for pack, free in enumerate(room):
            if free >= tokens[index]:
                room[pack] -= tokens[index]
                packs[pack].append(index)
                break
        else:
            return []
    return packs


if __name__ == "__main__":
    main()
