"""How full are packs, and how even are ranks?

    python benchmarks/packing.py lengths.json      a JSON list of conversation lengths in tokens

Against the usual peer in the same run: batches of conversations of similar length, padded to the
longest of each.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from ochat_ray.train.packing import plan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lengths", type=Path)
    parser.add_argument("--world-size", type=int, default=8)
    arguments = parser.parse_args()
    lengths = np.array(json.loads(arguments.lengths.read_text()))
    world_size = arguments.world_size
    print(f"{lengths.size:,} conversations, {lengths.sum():,} tokens, {world_size} ranks")
    for max_tokens in (8192, 12288, 16384):
        started = time.perf_counter()
        steps = plan(lengths, world_size=world_size, max_tokens=max_tokens, seed=0, epoch=0)
        seconds = time.perf_counter() - started
        fill = [tokens(lengths, step).sum() / (world_size * max_tokens) for step in steps[:-1]]
        padded = padded_share(lengths, max_tokens)
        print(
            f"packs of {max_tokens:>6,}: {100 * np.mean(fill):.2f}% real tokens "
            f"(padded, grouped by length: {100 * padded:.2f}%), planned in {seconds:.3f} s"
        )
    steps = plan(
        lengths, world_size=world_size, max_tokens=8192, sequences_per_step=128, seed=0, epoch=0
    )
    loads = [tokens(lengths, step) for step in steps]
    balance = np.mean([load.mean() / load.max() for load in loads])
    dealt = np.mean([balance_in_turn(lengths, step, world_size) for step in steps])
    print(
        f"128 conversations a step: ranks {100 * balance:.2f}% balanced "
        f"(dealt in turn: {100 * dealt:.2f}%), {len(steps)} steps"
    )


def tokens(lengths: np.ndarray, step: list[list[list[int]]]) -> np.ndarray:
    """Real tokens of each rank in a step, shape (ranks,)."""
    return np.array([sum(int(lengths[i]) for pack in packs for i in pack) for packs in step])


def padded_share(lengths: np.ndarray, max_tokens: int) -> float:
    """Share of real tokens in padded batches of at most `max_tokens`, drawn in buckets by length.

    As in 2023: shuffled, then sorted within groups of 50 batches.
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


def balance_in_turn(lengths: np.ndarray, step: list[list[list[int]]], world_size: int) -> float:
    """Mean over maximum of tokens a rank, if the same conversations were dealt in turn."""
    indices = sorted(i for packs in step for pack in packs for i in pack)
    loads = np.array([lengths[indices[rank::world_size]].sum() for rank in range(world_size)])
    return float(loads.mean() / loads.max())


if __name__ == "__main__":
    main()
