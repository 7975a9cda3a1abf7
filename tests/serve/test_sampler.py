from __future__ import annotations

import collections
import copy
import math

import numpy as np
import pytest
import torch

from ochat_ray.serve.engines.base import Sampling
from ochat_ray.serve.engines.batch_sampler import BatchSampler, RequestSampler
from ochat_ray.serve.engines.sampler import adjust, choose, log_probabilities

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


@pytest.mark.parametrize(
    ("sampling", "wanted"),
    [
        # 0.4 of the most likely one's 0.5 is 0.2, and 0.15 is less.
        ({"min_p": 0.4}, [2 / 3, 1 / 3, 0, 0]),
        ({"min_p": 0.25}, [0.5 / 0.9, 0.25 / 0.9, 0.15 / 0.9, 0]),
        # After the temperature: 0.0625 is a quarter of 0.25, and 0.0225 less than a tenth.
        ({"min_p": 0.2, "temperature": 0.5}, [0.8, 0.2, 0, 0]),
        # Before top_p: of 2/3 and 1/3 the first is enough.
        ({"min_p": 0.4, "top_p": 0.6}, [1, 0, 0, 0]),
        ({"top_k": 3, "top_p": 0.8}, [2 / 3, 1 / 3, 0, 0]),
    ],
)
def test_filters_apply_in_their_order(sampling, wanted):
    assert frequencies(**sampling) == pytest.approx(wanted, abs=0.032)


def test_a_large_vocabulary_is_drawn_from_as_it_is():
    # 20,000 tokens that race as one, of 0.3 together, above two likely ones.
    probabilities = np.concatenate([[0.5, 0.2], np.full(20_000, 0.3 / 20_000)])
    logits = torch.from_numpy(probabilities).log().float()
    drawn = np.array(
        [choose(logits, Sampling(max_tokens=1), seed=1, position=p) for p in range(DRAWS)]
    )
    shares = [(drawn == 0).mean(), (drawn == 1).mean(), (drawn > 1).mean()]
    assert shares == pytest.approx([0.5, 0.2, 0.3], abs=0.032)
    rare = drawn[drawn > 1]
    assert len(set(rare)) > 0.9 * len(rare)
    # A uniform draw's mean has a standard deviation of 5774 over the root of 1200 draws.
    assert rare.mean() == pytest.approx(10_001, abs=4 * 170)


def test_top_p_of_a_flat_row_keeps_what_it_says():
    logits = torch.zeros(10_000)
    drawn = {
        choose(logits, Sampling(max_tokens=1, top_p=0.5), seed=1, position=p) for p in range(2000)
    }
    # All are equally likely, so any 5000 of them may stay; 2000 draws of 5000 find 1648 +- 20.
    assert 1500 < len(drawn) < 1750


def test_a_draw_is_the_same_for_logits_that_differ_a_little():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(5000, generator=generator)
    near = logits + 1e-3 * torch.randn(5000, generator=generator)
    rules = Sampling(max_tokens=1)
    same = [
        choose(logits, rules, seed=0, position=p) == choose(near, rules, seed=0, position=p)
        for p in range(500)
    ]
    assert sum(same) >= 495


def test_logits_that_are_no_numbers_are_an_error():
    for row in (torch.full((4,), -torch.inf), torch.tensor([0.0, torch.nan])):
        for temperature in (0, 1):
            with pytest.raises(ValueError, match="logits"):
                choose(row, Sampling(max_tokens=1, temperature=temperature), seed=0, position=0)


def adjusted(scores, *, prompt=(), answer=(), allowed=None, **sampling):
    row = torch.tensor(scores)
    adjust(
        row,
        Sampling(max_tokens=1, **sampling),
        prompt_ids=torch.tensor(sorted(set(prompt)), dtype=torch.long),
        answer_counts=collections.Counter(answer),
        allowed=allowed,
    )
    return row.tolist()


def test_a_bias_is_added():
    assert adjusted([1.0, 2.0, 3.0], logit_bias=((2, -1.5), (0, 4.0))) == [5, 2, 1.5]


def test_repetition_counts_prompt_and_answer_and_divides_or_multiplies():
    got = adjusted([2.0, -2.0, 3.0, -3.0], prompt=[0, 1, 1], answer=[3], repetition_penalty=2.0)
    assert got == [1, -4, 3, -6]


def test_presence_and_frequency_count_the_answer_alone():
    row = [1.0, 1.0, 1.0]
    got = adjusted(row, prompt=[0, 0], answer=[1, 1, 1, 2], presence_penalty=0.5)
    assert got == [1, 0.5, 0.5]
    got = adjusted(row, prompt=[0, 0], answer=[1, 1, 1, 2], frequency_penalty=0.25)
    assert got == [1, 0.25, 0.75]
    assert adjusted(row, prompt=[0], presence_penalty=0.5, frequency_penalty=1.0) == row


def test_bias_comes_before_the_grammar_and_that_before_penalties():
    got = adjusted(
        [1.0, 1.0, 1.0],
        answer=[0, 1],
        allowed=np.array([True, False, True]),
        logit_bias=((0, 3.0), (1, 100.0)),
        repetition_penalty=2.0,
        presence_penalty=0.5,
    )
    assert got == [1.5, -torch.inf, 1]


def test_log_probabilities_are_the_rows_own():
    got = log_probabilities(LOGITS.log_softmax(-1), 2, 2)
    assert got.token_id == 2
    assert got.logprob == pytest.approx(math.log(0.15))
    assert [i for i, _ in got.top] == [0, 1]
    assert [p for _, p in got.top] == pytest.approx([math.log(0.5), math.log(0.25)])
    assert log_probabilities(LOGITS.log_softmax(-1), 0, 0).top == ()


def test_a_request_that_starts_anew_keeps_its_counts():
    # 0 is likeliest; once it is in the answer it is not any more.
    sampler = RequestSampler(
        [0, 0], Sampling(max_tokens=9, temperature=0, presence_penalty=1.0, top_logprobs=1), 0, None
    )
    row = torch.tensor([1.0, 0.5, 0.2])
    drawn = [sampler.draw(row.clone()), sampler.draw(row.clone())]
    again = copy.deepcopy({"sampler": sampler})["sampler"]
    drawn.append(again.draw(row.clone()))
    assert drawn == [0, 1, 2]
    # The model's own distribution, whatever the penalties made of it.
    logs = [entry.logprob for entry in sampler.logprobs]
    assert logs == pytest.approx(row.log_softmax(-1).tolist())
    assert [entry.top[0][0] for entry in sampler.logprobs] == [0, 0, 0]


def test_a_row_that_fails_leaves_the_others_alone():
    rows = [RequestSampler([1], Sampling(max_tokens=9, temperature=0), 0, None) for _ in range(2)]
    batch = BatchSampler()
    batch._rows = rows
    out = batch(torch.tensor([[torch.nan, 1.0, 2.0], [0.0, 5.0, 1.0]]), torch.zeros(2))
    assert out.argmax(-1).tolist() == [0, 1]
    assert isinstance(rows[0].error, ValueError)
    assert rows[1].error is None
