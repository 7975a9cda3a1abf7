"""Hashes of the content."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ochat_ray.data.dedup.exact import digest, ratio_for_some, split_of
from ochat_ray.schema import Turn

TURNS = st.lists(
    st.builds(Turn, role=st.sampled_from(["user", "assistant"]), text=st.text(max_size=8)),
    max_size=4,
)


def test_the_digest_is_blake2b_of_framed_fields():
    framed = b"".join(len(f).to_bytes(8, "little") + f for f in (b"user", "né".encode()))
    expected = hashlib.blake2b(framed, digest_size=16).hexdigest()
    assert digest([Turn(role="user", text="né")]) == expected


@given(TURNS, TURNS)
def test_different_conversations_have_different_digests(one, other):
    assert (digest(one) == digest(other)) == (one == other)


def test_moving_text_over_a_border_changes_the_digest():
    assert digest([Turn(role="user", text="ab"), Turn(role="user", text="c")]) != digest(
        [Turn(role="user", text="a"), Turn(role="user", text="bc")]
    )


def test_the_split_has_about_the_share_and_depends_on_the_seed():
    digests = [f"{i:032x}" for i in range(5000)]
    held_out = [d for d in digests if split_of(d, eval_ratio=0.1, seed=1) == "eval"]
    assert 400 < len(held_out) < 600
    assert held_out != [d for d in digests if split_of(d, eval_ratio=0.1, seed=2) == "eval"]
    assert all(split_of(d, eval_ratio=0.0, seed=1) == "train" for d in digests)


@pytest.mark.parametrize(("count", "held_out"), [(2, 0), (4, 1), (9, 2), (16, 4), (60, 4)])
def test_of_a_few_conversations_some_are_held_out(count, held_out):
    digests = [f"{n:032x}" for n in range(count)]
    ratio = ratio_for_some(digests, eval_ratio=1e-9, seed=1)
    splits = [split_of(digest, eval_ratio=ratio, seed=1) for digest in digests]
    assert splits.count("eval") == held_out
    assert ratio_for_some(digests, eval_ratio=0.0, seed=1) == 0.0
    assert ratio_for_some(digests, eval_ratio=0.9, seed=1) == 0.9
