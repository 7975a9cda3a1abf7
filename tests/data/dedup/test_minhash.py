"""MinHash LSH, each step against the same worked out in full."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ochat_ray.data.dedup import minhash as nd
from ochat_ray.schema import Turn

LETTERS = "abcdefghijklmnopqrst"


def grams(text):
    """Word 5-grams as tuples, of words between spaces."""
    split = text.split()
    return {tuple(split[i : i + 5]) for i in range(max(1, len(split) - 4))}


def jaccard(one, other):
    return len(one & other) / len(one | other)


def find(texts, keys, threshold=0.8, shards=1, parts=1):
    """{dropped key: survivor's key}, cut into parts and shards as a caller would."""
    signatures = np.concatenate([nd.signatures(part) for part in np.array_split(texts, parts)])
    bands, rows = nd.banding(threshold)
    hashes = nd.band_hashes(signatures, bands, rows)
    order = nd.digest_order(f"{key:>032}" for key in keys)
    found = []
    for band, shard in itertools.product(range(bands), range(shards)):
        inside = np.flatnonzero(nd.in_shard(hashes[:, band], shard, shards))
        found.append(inside[nd.candidate_pairs(hashes[inside, band], order[inside])])
    pairs = nd.similar(nd.distinct(found), signatures, threshold)
    return {keys[i]: keys[j] for i, j in nd.clusters(pairs, keys).items()}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello, World_wide  web!", ["hello", "world", "wide", "web"]),
        ("Straße ＡＢＣ cafe\u0301", ["strasse", "abc", "café"]),
        ("你好，world。", ["你", "好", "world"]),
        ("안녕 세계", ["안녕", "세계"]),
        ("?! 🙂", ["?", "!", "🙂"]),
        (" \n", []),
    ],
)
def test_words(text, expected):
    assert nd.words(text) == expected


@given(st.text(st.characters(max_codepoint=127)))
def test_ascii_text_has_the_same_words_by_its_short_cut(text):
    assert nd.words(text + " z") == nd.words(text + " z ö")[:-1]


@given(st.lists(st.sampled_from(["one", "two", "three"]), min_size=1, max_size=30))
def test_there_is_one_shingle_for_each_distinct_five_words(split):
    found = nd.shingles(" ".join(split))
    assert found.dtype == np.uint64
    assert found.size == len(grams(" ".join(split)))
    assert (np.diff(found) > 0).all()


def test_a_changed_word_changes_the_five_shingles_that_hold_it():
    one, other = nd.shingles(" ".join(LETTERS)), nd.shingles(" ".join(LETTERS.replace("j", "z")))
    assert one.size == other.size == 16
    assert np.intersect1d(one, other).size == 11


def test_short_texts_give_one_shingle_and_blank_ones_none():
    assert nd.shingles("thank you").size == 1
    assert nd.shingles("thank you").tolist() != nd.shingles("you thank").tolist()
    assert nd.shingles("").size == 0


def test_a_text_without_spaces_gives_shingles():
    assert nd.shingles("今天天气很好我们去公园").size == 7


def test_a_long_text_is_hashed_in_pieces(monkeypatch):
    text = "the quick brown fox jumps over the lazy dog"
    whole = nd.shingles(text)
    monkeypatch.setattr(nd, "PIECE", text.index("over"))
    assert nd.shingles(text).tolist() == whole.tolist()


def test_what_is_compared_has_no_roles_and_no_system_prompt():
    turns = [Turn(role="system", text="Be kind."), Turn(role="user", text="Hi")]
    assert nd.conversation_text([*turns, Turn(role="assistant", text="Hello")]) == "Hi\nHello"


def test_signatures_estimate_the_jaccard_similarity():
    rng = np.random.default_rng(0)
    base = [f"w{i}" for i in rng.integers(0, 10**6, 400)]
    for changed in (0, 4, 10, 40):
        split = list(base)
        for place in rng.choice(400, changed, replace=False):
            split[place] = "changed"
        one, other = nd.signatures([" ".join(base), " ".join(split)])
        exact = jaccard(grams(" ".join(base)), grams(" ".join(split)))
        assert (one == other).mean() == pytest.approx(exact, abs=0.1)  # 3 standard errors or more


def test_signatures_are_the_same_in_every_process():
    text = "the quick brown fox jumps over the lazy dog, 你好"
    code = (
        "from ochat_ray.data.dedup.minhash import signatures; "
        f"print(signatures([{text!r}]).tobytes().hex())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "7", "PYTHONUTF8": "1"},
    )
    signatures = nd.signatures(["something else", text])
    assert signatures.dtype == np.uint32
    assert done.stdout.strip() == signatures[1].tobytes().hex()


@pytest.mark.parametrize(
    ("threshold", "permutations", "weight", "expected"),
    [  # datasketch 2.0.0: _optimal_param(threshold, permutations, 1 - weight, weight)
        (0.9, 128, 0.5, (5, 25)),  # stands in its documentation too
        (0.7, 128, 0.8, (18, 7)),
        (0.7, 256, 0.9, (32, 8)),
        (0.8, 256, 0.5, (17, 15)),
        (0.8, 256, 0.9, (23, 11)),
        (0.9, 256, 0.9, (13, 19)),
    ],
)
def test_banding_is_datasketch_s(threshold, permutations, weight, expected):
    assert expected == nd.banding(
        threshold, permutations=permutations, false_negative_weight=weight
    )


@pytest.mark.parametrize("threshold", [0, 1, 80])
def test_a_threshold_that_is_no_share_is_refused(threshold):
    with pytest.raises(ValueError, match="between 0 and 1"):
        nd.banding(threshold)


def test_a_band_s_hash_is_that_of_its_rows():
    rng = np.random.default_rng(0)
    signatures = rng.integers(0, 3, (200, 7), dtype=np.uint32)
    hashes = nd.band_hashes(signatures, bands=3, rows=2)  # the seventh place is left over
    assert hashes.dtype == np.uint64
    assert hashes.shape == (200, 3)
    for one, other in itertools.combinations(range(200), 2):
        same = (signatures[one, :6] == signatures[other, :6]).reshape(3, 2).all(axis=1)
        assert ((hashes[one] == hashes[other]) == same).all()


def test_shards_cut_all_hashes_into_even_ranges():
    signatures = np.arange(4000, dtype=np.uint32).reshape(2000, 2)
    hashes = nd.band_hashes(signatures, bands=1, rows=2)[:, 0]
    inside = np.stack([nd.in_shard(hashes, shard, 7) for shard in range(7)])
    assert (inside.sum(axis=0) == 1).all()
    assert inside.sum(axis=1).min() > 200
    top = np.array([2**64 - 1], dtype=np.uint64)
    assert nd.in_shard(top, 6, 7).all()


@given(st.lists(st.integers(0, 5), max_size=25), st.randoms(use_true_random=False))
def test_small_buckets_give_all_their_pairs(hashes, random):
    order = list(range(len(hashes)))
    random.shuffle(order)
    found = nd.candidate_pairs(np.array(hashes, dtype=np.uint64), np.array(order, dtype=np.uint64))
    expected = [p for p in itertools.combinations(range(len(hashes)), 2) if same(hashes, *p)]
    assert sorted(map(tuple, found.tolist())) == expected


def same(values, one, other):
    return values[one] == values[other]


def test_a_large_bucket_gives_a_star_around_the_first_in_order():
    size = nd.BUCKET_PAIRS + 1
    hashes = np.array([7] * size + [8, 8], dtype=np.uint64)
    order = np.arange(size + 2, dtype=np.uint64)[::-1].copy()
    centre = size - 1
    expected = [(i, centre) for i in range(centre)] + [(size, size + 1)]
    assert sorted(map(tuple, nd.candidate_pairs(hashes, order).tolist())) == expected


def test_pairs_are_similar_that_agree_in_enough_places():
    signatures = np.array([[1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 6, 7]], dtype=np.uint32)
    pairs = np.array([[0, 1], [0, 2], [1, 2]])
    assert nd.similar(pairs, signatures, 0.75).tolist() == [[0, 1]]
    assert nd.similar(pairs, signatures, 0.5).tolist() == [[0, 1], [0, 2], [1, 2]]
    assert nd.similar(pairs[:0], signatures, 0.5).tolist() == []


def test_clusters_give_way_to_the_smallest_key():
    pairs = [(0, 1), (2, 3), (1, 3), (5, 6)]
    keys = {0: "d", 1: "c", 2: "a", 3: "b", 5: "y", 6: "x"}
    assert nd.clusters(pairs, keys) == {0: 2, 1: 2, 3: 2, 5: 6}


@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=15),
    st.permutations("abcdefghijklm"),
    st.randoms(use_true_random=False),
)
def test_clusters_are_the_connected_components(pairs, keys, random):
    reachable = {i: {i} for i in range(13)}
    for _ in range(13):
        for one, other in pairs:
            reachable[one] |= reachable[other]
            reachable[other] |= reachable[one]
    survivors = {i: min(reachable[i], key=keys.__getitem__) for i in range(13)}
    random.shuffle(pairs)
    assert nd.clusters(pairs, keys) == {i: j for i, j in survivors.items() if i != j}


def made_texts():
    """Three families of near duplicates, one of them larger than a bucket, and texts apart."""
    rng = np.random.default_rng(1)
    texts = []
    for family, copies in enumerate((3, 40, 2)):
        base = [f"f{family}w{i}" for i in rng.integers(0, 1000, 300)]
        for copy in range(copies):
            texts.append(" ".join([*base[:150], f"copy{copy}", *base[151:]]))
    texts += [" ".join(f"x{i}" for i in rng.integers(0, 1000, 50)) for _ in range(20)]
    return texts


TEXTS = made_texts()
KEYS = [f"{i:04d}" for i in range(len(TEXTS))]


def test_families_leave_one_each():
    expected = dict.fromkeys(KEYS[1:3], KEYS[0])
    expected |= dict.fromkeys(KEYS[4:43], KEYS[3]) | {KEYS[44]: KEYS[43]}
    assert find(TEXTS, KEYS) == expected


@settings(max_examples=10, deadline=None)
@given(st.permutations(range(len(TEXTS))), st.integers(1, 4), st.integers(1, 6))
def test_survivors_depend_neither_on_order_nor_on_cuts(places, shards, parts):
    texts, keys = [TEXTS[i] for i in places], [KEYS[i] for i in places]
    assert find(texts, keys, shards=shards, parts=parts) == find(TEXTS, KEYS)
