"""Near duplicates: MinHash signatures over word shingles, banded (LSH), verified, clustered.

Steps:

    words -> shingles -> signatures -> band hashes -> candidate pairs -> similar pairs -> clusters

Each step is a function of plain arrays, so that a caller can split it by parts, bands and hash
ranges. The result depends neither on the order of rows nor on the split. The method is chapter 3 of
Leskovec, Rajaraman, Ullman: Mining of Massive Datasets; 5 words per shingle and a Jaccard
similarity of 0.8 are the values of Lee et al. 2021 (arXiv 2107.06499).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from rensa import RMinHash

from ochat_ray.schema import Turn

SHINGLE_WORDS = 5
# The standard error at a Jaccard similarity of 0.8 is at most 0.025. With 128 it is 0.035,
# and the precision at 0.8 was 0.95 instead of 0.97 (benchmarks/near_duplicates.py).
PERMUTATIONS = 256
SEED = 42

# Characters that are split into words at once: a turn of 50 MB would need a gigabyte. A word split
# at the border has no relevant effect on similarity.
PIECE = 1_000_000

# A bucket of up to this many conversations yields all its pairs, a larger one a star.
BUCKET_PAIRS = 32

# Thai to Lao, Myanmar, Khmer, kana, Han: written without spaces, so each character counts as a
# word. Hangul has spaces.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
_ASCII_WORDS = bytes(b if b < 128 and chr(b).isalnum() else ord(" ") for b in range(256))
_ODD = np.uint64(0x9E3779B97F4A7C15)


def conversation_text(turns: Iterable[Turn]) -> str:
    """Return the compared text of a conversation: the user's and the assistant's turns.

    An application's system prompt is the same in all its conversations and identifies none of them.
    """
    return "\n".join(turn.text for turn in turns if turn.role != "system")


def words(text: str) -> list[str]:
    """Return case-folded words without punctuation; characters, if a script has no spaces.

    A text of only punctuation or emoji yields its characters.
    """
    if text.isascii():  # four times as fast as the pattern, and true for most texts
        found = text.lower().encode().translate(_ASCII_WORDS).decode().split()
    else:
        found = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    return found or re.findall(r"\S", text)


def shingles(text: str) -> np.ndarray:
    """Return hashes of the text's word 5-grams, uint64, sorted and distinct.

    A shorter text yields one shingle of all its words; a blank one yields none.
    """
    hashed = [_word_hashes(text[i : i + PIECE]) for i in range(0, len(text), PIECE)]
    hashes = np.concatenate([np.empty(0, dtype=np.uint64), *hashed])
    width = min(SHINGLE_WORDS, hashes.size)
    combined = np.zeros(hashes.size - width + 1 if width else 0, dtype=np.uint64)
    for offset in range(width):
        combined = combined * _ODD + hashes[offset : offset + combined.size]
    return np.unique(combined)


def _word_hashes(text: str) -> np.ndarray:
    return np.array(RMinHash.hash_token_sets([words(text)])[0], dtype=np.uint64)


def signatures(texts: Sequence[str]) -> np.ndarray:
    """Return MinHash signatures, uint32 [texts, PERMUTATIONS]; equal for equal sets of shingles.

    They are comparable only within one version of `rensa`: 0.5 changed the algorithm.
    """
    result = np.empty((len(texts), PERMUTATIONS), dtype=np.uint32)
    for row, text in enumerate(texts):
        found = shingles(text)
        offsets = np.array([0, found.size], dtype=np.uint64)
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(found, offsets, PERMUTATIONS, SEED)
        result[row] = matrix.to_rows()[0]
    return result


def banding(
    threshold: float, *, permutations: int = PERMUTATIONS, false_negative_weight: float = 0.9
) -> tuple[int, int]:
    """Return (bands, rows) that find most pairs above the threshold with few candidates below it.

    A pair with Jaccard similarity s shares a band with probability 1 - (1 - s^rows)^bands. As in
    datasketch's MinHashLSH, this minimizes the weighted sum of its integral below the threshold
    (false positives) and of its complement's above (false negatives). False negatives weigh more
    here: a false candidate is verified later, a missed one is lost.

    Raises:
        ValueError: The threshold is not between 0 and 1.
    """
    if not 0 < threshold < 1:
        raise ValueError(f"the threshold must lie between 0 and 1, not {threshold}")
    below = _midpoints(0.0, threshold)
    above = _midpoints(threshold, 1.0)
    best = (float("inf"), 0, 0)
    for rows in range(1, permutations + 1):
        below_rows, above_rows = below**rows, above**rows
        for bands in range(1, permutations // rows + 1):
            positives = threshold * (1 - (1 - below_rows) ** bands).mean()
            negatives = (1 - threshold) * ((1 - above_rows) ** bands).mean()
            weighted = false_negative_weight * negatives + (1 - false_negative_weight) * positives
            best = min(best, (float(weighted), bands, rows))
    return best[1], best[2]


def _midpoints(low: float, high: float, count: int = 500) -> np.ndarray:
    return low + (np.arange(count) + 0.5) * ((high - low) / count)


def band_hashes(signatures: np.ndarray, bands: int, rows: int) -> np.ndarray:
    """Return one hash per signature and band, uint64 [signatures, bands], uniform in all bits."""
    cut = signatures[:, : bands * rows].reshape(len(signatures), bands, rows)
    hashes = np.zeros(cut.shape[:2], dtype=np.uint64)
    for row in range(rows):
        hashes = (hashes ^ cut[:, :, row]) * _ODD
        hashes ^= hashes >> np.uint64(29)
    return hashes


def in_shard(hashes: np.ndarray, shard: int, shards: int) -> np.ndarray:
    """Return a mask of the hashes (uint64) in one of `shards` equal ranges; bool [hashes]."""
    high = hashes >> np.uint64(32)
    return np.asarray((high * np.uint64(shards)) >> np.uint64(32) == np.uint64(shard))


def digest_order(digests: Iterable[str]) -> np.ndarray:
    """Return the first eight bytes of each content digest, uint64: an order by content only."""
    return np.array([int(digest[:16], 16) for digest in digests], dtype=np.uint64)


def candidate_pairs(hashes: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Return pairs of positions with equal hashes in one band, int64 [pairs, 2], lower first.

    A bucket of up to BUCKET_PAIRS yields every pair; a larger one pairs each member only with the
    first one by `order`, so that text shared by a thousand conversations does not cost a million
    pairs.
    """
    by_bucket = np.lexsort((order, hashes))
    ordered = hashes[by_bucket]
    is_first = np.r_[True, ordered[1:] != ordered[:-1]][: ordered.size]
    first = np.flatnonzero(is_first)
    sizes = np.diff(np.r_[first, ordered.size])
    starts, ends = np.repeat(first, sizes), np.repeat(first + sizes, sizes)
    large = np.repeat(sizes > BUCKET_PAIRS, sizes)

    positions = np.arange(ordered.size)
    spokes = positions[large & ~is_first]
    lefts, rights = [starts[spokes]], [spokes]
    for step in range(1, BUCKET_PAIRS):
        left = positions[~large & (positions + step < ends)]
        if not left.size:
            break
        lefts.append(left)
        rights.append(left + step)
    pairs = np.stack([np.concatenate(lefts), np.concatenate(rights)], axis=1)
    return np.sort(by_bucket[pairs], axis=1).astype(np.int64)


def distinct(pairs: Iterable[np.ndarray]) -> np.ndarray:
    """Return the distinct pairs of all bands, sorted, int64 [pairs, 2]."""
    return np.unique(np.concatenate([np.empty((0, 2), dtype=np.int64), *pairs]), axis=0)


def similar(pairs: np.ndarray, signatures: np.ndarray, threshold: float) -> np.ndarray:
    """Return the pairs whose signatures agree in at least the threshold's share of positions.

    That share estimates the Jaccard similarity of the two sets of shingles. Memory does not grow
    with the number of pairs.
    """
    estimates = np.empty(len(pairs))
    for start in range(0, len(pairs), 4096):
        left, right = pairs[start : start + 4096].T
        estimates[start : start + 4096] = (signatures[left] == signatures[right]).mean(axis=1)
    return pairs[estimates >= threshold]


def clusters(
    pairs: Iterable[Sequence[int]], keys: Sequence[Any] | Mapping[int, Any]
) -> dict[int, int]:
    """Map each duplicate to its survivor, for every set of connected positions.

    The survivor has the smallest key; keys are unique. Memory grows with the number of positions in
    pairs, not with the total.
    """
    parents: dict[int, int] = {}

    def root(position: int) -> int:
        while (parent := parents.setdefault(position, position)) != position:
            parents[position] = parents[parent]
            position = parent
        return position

    for left, right in pairs:
        one, other = root(int(left)), root(int(right))
        if keys[other] < keys[one]:
            one, other = other, one
        parents[other] = one
    return {member: root(member) for member in sorted(parents) if root(member) != member}
