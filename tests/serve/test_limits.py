from __future__ import annotations

import pytest

from ochat_ray.serve.limits import Limits
from ochat_ray.serve.protocol.errors import ApiError


@pytest.fixture
def now():
    return [0.0]


def limits(now, requests=None, tokens=None):
    return Limits(requests_per_minute=requests, tokens_per_minute=tokens, clock=lambda: now[0])


def test_requests_come_back_evenly(now):
    bound = limits(now, requests=6)
    for left in (5, 4, 3, 2, 1, 0):
        assert bound.admit("a")["x-ratelimit-remaining-requests"] == str(left)
    with pytest.raises(ApiError) as caught:
        bound.admit("a")
    assert caught.value.status == 429
    assert caught.value.headers["Retry-After"] == "10"
    assert caught.value.headers["x-ratelimit-reset-requests"] == "60.000s"
    now[0] = 10.0
    bound.admit("a")
    with pytest.raises(ApiError):
        bound.admit("a")


def test_tokens_may_be_owed_and_are_paid_back_by_time(now):
    bound = limits(now, tokens=600)
    bound.admit("a")
    bound.take_tokens("a", 900)
    with pytest.raises(ApiError) as caught:
        bound.admit("a")
    # 300 are owed and one is needed: 10 a second.
    assert caught.value.headers["Retry-After"] == "31"
    assert caught.value.headers["x-ratelimit-remaining-tokens"] == "0"
    now[0] = 30.2
    assert bound.admit("a")["x-ratelimit-remaining-tokens"] == "2"


def test_keys_do_not_share_and_no_limit_is_no_header(now):
    bound = limits(now, requests=1)
    bound.admit("a")
    bound.admit("b")
    assert limits(now).admit("a") == {}


def test_both_limits_apply_to_requests_that_take_no_tokens(now):
    bound = limits(now, requests=2, tokens=60)
    for _ in range(2):
        bound.admit("a")
    with pytest.raises(ApiError, match="2 requests per minute"):
        bound.admit("a")


def test_keys_that_are_full_again_are_forgotten_and_debts_are_not(now):
    bound = limits(now, tokens=60)
    bound.take_tokens("debtor", 600)
    for number in range(100):
        bound.take_tokens(str(number), 1)
    now[0] = 61.0
    bound.admit("new")
    assert len(bound._buckets._buckets) == 2
    with pytest.raises(ApiError):
        bound.admit("debtor")


def test_rejections_are_delayed_once_there_are_too_many(now):
    bound = limits(now, requests=6)
    assert [bound.rejection_delay_s("a", 0) for _ in range(1200)] == [0] * 1200
    assert bound.rejection_delay_s("a", 0) == pytest.approx(0.05)  # 20 a second
    assert bound.rejection_delay_s("a", 1_000_000) == pytest.approx(0.6)
    assert bound.rejection_delay_s("a", 10**9) == 5
    assert bound.rejection_delay_s("b", 0) == 0
    assert bound.admit("a")["x-ratelimit-remaining-requests"] == "5"
    assert "rejections" not in str(bound.admit("a"))
    now[0] = 5.1
    assert bound.rejection_delay_s("a", 0) == 0
