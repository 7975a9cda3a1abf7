from __future__ import annotations

import collections

import pytest
import torch

from ochat_ray.serve.engines.base import Sampling
from ochat_ray.serve.engines.sampler import choose

PROBABILITIES = [0.5, 0.25, 0.15, 0.1]
LOGITS = torch.tensor(PROBABILITIES).log()
DRAWS = 4000


def frequencies(**sampling):
    rules = Sampling(max_tokens=1, **sampling)
    counts = collections.Counter(
        choose(LOGITS, rules, seed=3, position=position) for position in range(DRAWS)
    )
    return [counts[token] / DRAWS for token in range(4)]


@pytest.mark.parametrize(
    ("sampling", "wanted"),
    [
        ({}, [0.5, 0.25, 0.15, 0.1]),
        ({"top_k": 2}, [2 / 3, 1 / 3, 0, 0]),
        ({"top_p": 0.75}, [2 / 3, 1 / 3, 0, 0]),
        ({"top_p": 0.76}, [0.5 / 0.9, 0.25 / 0.9, 0.15 / 0.9, 0]),
        # Squared and normalised: 0.25, 0.0625, 0.0225 and 0.01 over 0.345.
        ({"temperature": 0.5}, [0.7246, 0.1812, 0.0652, 0.0290]),
        ({"temperature": 0}, [1, 0, 0, 0]),
        ({"top_k": 1}, [1, 0, 0, 0]),
        ({"top_p": 0}, [1, 0, 0, 0]),
    ],
)
def test_draws_follow_the_rules(sampling, wanted):
    # 4 standard deviations of 4000 draws are at most 0.032.
    assert frequencies(**sampling) == pytest.approx(wanted, abs=0.032)


def test_a_draw_depends_on_seed_and_position_alone():
    def draws(seed):
        return [choose(LOGITS, Sampling(max_tokens=1), seed=seed, position=p) for p in range(50)]

    assert draws(1) == draws(1)
    assert draws(1) != draws(2)
    assert draws(-(2**63)) == draws(-(2**63))
