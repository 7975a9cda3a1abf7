"""Near duplicates: MinHash signatures over word shingles, banded (LSH), verified, clustered.

    words -> shingles -> signatures -> band hashes -> candidate pairs -> similar pairs -> clusters

Each step is a function of plain arrays, so that a caller can cut it by parts, bands and ranges of
hashes. Nothing depends on the order of rows or on where they are cut. The method is chapter 3 of
Leskovec, Rajaraman, Ullman: Mining of Massive Datasets; 5 words a shingle and a Jaccard similarity
of 0.8 are the values of Lee et al. 2021 (arXiv 2107.06499).
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

# Characters that are split into words at once: those of a turn of 50 MB would take a gigabyte. A
# word that the border cuts changes no similarity that matters.
PIECE = 1_000_000

# A bucket of up to this many conversations gives all its pairs, a larger one a star.
BUCKET_PAIRS = 32

# Thai to Lao, Myanmar, Khmer, kana, Han: written without spaces, so a character is a word.
# Hangul has spaces.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
_ASCII_WORDS = bytes(b if b < 128 and chr(b).isalnum() else ord(" ") for b in range(256))
_ODD = np.uint64(0x9E3779B97F4A7C15)


def conversation_text(turns: Iterable[Turn]) -> str:
    """What of a conversation is compared: the user's and the assistant's texts.

    An application's system prompt is the same in all its conversations and says nothing of one.
    """
    return "\n".join(turn.text for turn in turns if turn.role != "system")


def words(text: str) -> list[str]:
    """Case-folded words without punctuation; characters, where a script has no spaces.

    A text of punctuation or emoji alone gives its characters.
    """
    if text.isascii():  # four times as fast as the pattern, and most texts are
        found = text.lower().encode().translate(_ASCII_WORDS).decode().split()
    else:
        found = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    return found or re.findall(r"\S", text)


def shingles(text: str) -> np.ndarray:
    """Hashes of the text's word 5-grams, uint64, sorted and distinct.

    A text of fewer words gives one shingle of them all; a blank one gives none.
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
    """MinHash signatures, uint32 [texts, PERMUTATIONS]; equal for equal sets of shingles.

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
    """(bands, rows) that find most pairs over the threshold with few candidates below it.

    A pair of Jaccard similarity s shares a band with probability 1 - (1 - s^rows)^bands. As in
    datasketch's MinHashLSH, the weighted sum of its integral below the threshold (false positives)
    and of the complement's above (false negatives) is least. Missed pairs weigh more here: a false
    candidate is verified, a missed one is lost.

    Raises:
        ValueError: the threshold is not between 0 and 1.
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
    """One hash for each band of each signature, uint64 [signatures, bands], even in all bits."""
    cut = signatures[:, : bands * rows].reshape(len(signatures), bands, rows)
    hashes = np.zeros(cut.shape[:2], dtype=np.uint64)
    for row in range(rows):
        hashes = (hashes ^ cut[:, :, row]) * _ODD
        hashes ^= hashes >> np.uint64(29)
    return hashes


def in_shard(hashes: np.ndarray, shard: int, shards: int) -> np.ndarray:
    """Which hashes (uint64) lie in the shard's range, of `shards` equal ones; bool [hashes]."""
    high = hashes >> np.uint64(32)
    return np.asarray((high * np.uint64(shards)) >> np.uint64(32) == np.uint64(shard))


def digest_order(digests: Iterable[str]) -> np.ndarray:
    """Eight bytes of each content digest, uint64: an order that no place in a file decides."""
    return np.array([int(digest[:16], 16) for digest in digests], dtype=np.uint64)


def candidate_pairs(hashes: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Pairs of positions with the same hash in one band, int64 [pairs, 2], the lower first.

    Every pair of a bucket of up to BUCKET_PAIRS; beyond, each member with the first one by `order`
    only, so that what a thousand conversations share never costs a million pairs.
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
    """The pairs of all bands, once each and sorted, int64 [pairs, 2]."""
    return np.unique(np.concatenate([np.empty((0, 2), dtype=np.int64), *pairs]), axis=0)


def similar(pairs: np.ndarray, signatures: np.ndarray, threshold: float) -> np.ndarray:
    """The pairs whose signatures agree in at least the threshold's share of places.

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
    """Who gives way to whom: of each set of connected positions all but the one that survives.

    The survivor has the smallest key; keys are unique. Memory grows with the positions in pairs,
    not with all.
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
