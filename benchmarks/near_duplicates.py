"""Recall and precision of near-duplicate detection.

    python benchmarks/near_duplicates.py      on real conversations of the demo

Compares the pairs found by MinHash LSH with the exact Jaccard similarity of every pair over the
same shingles. Copies with a known share of changed words are added to the real conversations.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import numpy as np

from ochat_ray.data.dedup.minhash import (
    PERMUTATIONS,
    band_hashes,
    banding,
    candidate_pairs,
    clusters,
    conversation_text,
    distinct,
    shingles,
    signatures,
    similar,
)
from ochat_ray.data.sources import read_file
from ochat_ray.demo import assets
from ochat_ray.schema import Conversation

CHANGED_SHARES = (0.002, 0.005, 0.01, 0.02, 0.03, 0.04)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--real", type=int, default=4000, help="real conversations")
    parser.add_argument("--copies", type=int, default=200, help="copies for each share of words")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    texts = sample(arguments.real, rng)
    for share in CHANGED_SHARES:
        originals = rng.choice(arguments.real, arguments.copies, replace=False)
        texts += [change(texts[i], share, rng) for i in originals]

    started = time.process_time()
    found_signatures = signatures(texts)
    per_text_ms = 1000 * (time.process_time() - started) / len(texts)
    started = time.process_time()
    exact = jaccard_matrix([shingles(text) for text in texts])
    brute_force_s = time.process_time() - started
    made = arguments.copies * len(CHANGED_SHARES)
    print(
        f"{arguments.real:,} real conversations and {made:,} changed copies, "
        f"{PERMUTATIONS} permutations: {per_text_ms:.3f} ms of CPU a conversation for signatures "
        f"(every pair exactly: {brute_force_s:.0f} s)\n"
    )
    print(
        "| threshold | bands x rows | candidates | similar | true | precision | recall "
        "| recall from threshold + 0.05 | dropped | seconds |"
    )
    print("|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    for threshold in (0.7, 0.8, 0.9):
        print(row(threshold, found_signatures, exact))


def row(threshold: float, found_signatures: np.ndarray, exact: np.ndarray) -> str:
    """Return a row of the table: one threshold's pairs compared with the exact ones."""
    started = time.process_time()
    bands, rows = banding(threshold)
    hashes = band_hashes(found_signatures, bands, rows)
    order = np.arange(len(hashes), dtype=np.uint64)
    candidates = distinct(candidate_pairs(hashes[:, band], order) for band in range(bands))
    pairs = similar(candidates, found_signatures, threshold)
    dropped = clusters(pairs, [f"{i:08d}" for i in range(len(hashes))])
    seconds = time.process_time() - started

    found = np.zeros(exact.shape, dtype=bool)
    found[pairs[:, 0], pairs[:, 1]] = True
    upper = np.triu(np.ones(exact.shape, dtype=bool), k=1)
    true, clear = upper & (exact >= threshold), upper & (exact >= threshold + 0.05)
    precision = (found & true).sum() / found.sum()
    recall, clear_recall = (found & true).sum() / true.sum(), (found & clear).sum() / clear.sum()
    return (
        f"| {threshold} | {bands} x {rows} | {len(candidates):,} | {len(pairs):,} "
        f"| {true.sum():,} | {precision:.3f} | {recall:.3f} | {clear_recall:.3f} "
        f"| {len(dropped):,} | {seconds:.2f} |"
    )


def sample(count: int, rng: np.random.Generator) -> list[str]:
    """Return a random sample of texts of real conversations."""
    path = str(assets.conversations())
    texts = [
        conversation_text(item.turns) for item in read_file(path) if isinstance(item, Conversation)
    ]
    texts = [text for text in texts if text.strip()]
    return [texts[i] for i in rng.choice(len(texts), count, replace=False)]


def change(text: str, share: float, rng: np.random.Generator) -> str:
    """Replace this share of the text's words, at random positions; at least one word."""
    split = text.split(" ")
    for place in rng.choice(len(split), max(1, round(share * len(split))), replace=False):
        split[place] = f"word{rng.integers(10**9)}"
    return " ".join(split)


def jaccard_matrix(sets: Sequence[np.ndarray]) -> np.ndarray:
    """Return the exact Jaccard similarity of all pairs of sets, float32 [sets, sets].

    The elements of each set are sorted and distinct.
    """
    values = np.concatenate(sets)
    owners = np.repeat(np.arange(len(sets)), [s.size for s in sets])
    order = np.argsort(values, kind="stable")
    values, owners = values[order], owners[order]
    first = np.flatnonzero(np.r_[True, values[1:] != values[:-1]])
    common = np.zeros((len(sets), len(sets)), dtype=np.int32)
    for start, end in zip(first, np.r_[first[1:], values.size], strict=True):
        if end - start > 1:
            members = owners[start:end]
            common[members[:, None], members] += 1
    sizes = np.array([s.size for s in sets])
    np.fill_diagonal(common, sizes)
    union = sizes[:, None] + sizes[None, :] - common
    return (common / np.maximum(union, 1)).astype(np.float32)


if __name__ == "__main__":
    main()
