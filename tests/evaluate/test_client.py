"""What the client tries again, how it slows down, and what it gives up."""

import asyncio
import time

import pytest

from ochat_ray.errors import UserError
from ochat_ray.evaluate import client as module
from ochat_ray.evaluate.client import CallFailedError, Client, Window
from tests.evaluate.endpoint import Endpoint, refusal


def asked(endpoint, bodies, **options):
    async def work():
        options.setdefault("first_pause_s", 0.01)
        async with Client(endpoint.url, "key", **options) as client:
            return await asyncio.gather(
                *[client.chat(body) for body in bodies], return_exceptions=True
            )

    return asyncio.run(work())


def echo(body):
    return f"answer to {body['n']}"


@pytest.mark.parametrize(
    "trouble",
    [
        refusal(500), refusal(503), refusal(429, retry_after="0"), refusal(408), "half", "hang",
        refusal(200, "an error in the place of an answer"),
    ],
)  # fmt: skip
def test_what_may_pass_is_tried_again(trouble):
    endpoint = Endpoint(echo, lambda body, before: trouble if before < 2 else None)
    with endpoint.serving():
        (reply,) = asked(endpoint, [{"n": 1}], timeout_s=0.3 if trouble == "hang" else 10)
    assert (reply.text, reply.finish_reason) == ("answer to 1", "stop")
    assert (reply.prompt_tokens, reply.completion_tokens) == (3, 2)
    assert len(endpoint.asked) == 3


@pytest.mark.parametrize(
    ("status", "kind"), [(400, CallFailedError), (422, CallFailedError), (401, UserError),
                         (403, UserError), (404, UserError)],
)  # fmt: skip
def test_what_will_not_pass_is_not(status, kind):
    endpoint = Endpoint(echo, lambda body, before: refusal(status, "said\nso"))
    with endpoint.serving():
        (error,) = asked(endpoint, [{"n": 1}])
    assert isinstance(error, kind)
    assert f"{status} said so" in str(error)
    assert len(endpoint.asked) == 1


def test_a_call_is_given_up_and_the_others_go_on():
    endpoint = Endpoint(echo, lambda body, before: refusal(500) if body["n"] == 1 else None)
    with endpoint.serving():
        bad, good = asked(endpoint, [{"n": 1}, {"n": 2}], attempts=3)
    assert isinstance(bad, CallFailedError)
    assert "after 3 attempts: 500" in str(bad)
    assert good.text == "answer to 2"


def test_nobody_there_is_a_failed_call():
    endpoint = Endpoint(echo)
    endpoint.url = "http://127.0.0.1:9/v1"
    (error,) = asked(endpoint, [{"n": 1}], attempts=2)
    assert isinstance(error, CallFailedError)


def test_the_pause_that_is_asked_for_is_kept():
    endpoint = Endpoint(
        echo, lambda body, before: refusal(429, retry_after="0.4") if not before else None
    )
    with endpoint.serving():
        begin = time.monotonic()
        asked(endpoint, [{"n": 1}])
    assert time.monotonic() - begin >= 0.4


def test_no_more_are_under_way_than_allowed():
    endpoint = Endpoint(echo)
    with endpoint.serving():
        replies = asked(endpoint, [{"n": n} for n in range(40)], max_concurrency=3)
    assert [reply.text for reply in replies] == [f"answer to {n}" for n in range(40)]
    assert endpoint.most_at_once == 3


def test_an_endpoint_that_is_too_busy_gets_fewer_at_once():
    busy = Endpoint(echo)
    busy.misbehave = lambda body, before: refusal(429) if busy.at_once > 2 else None
    with busy.serving():
        replies = asked(busy, [{"n": n} for n in range(30)], max_concurrency=16, attempts=30)
    assert all(reply.text for reply in replies)


def test_the_window_halves_once_for_all_that_were_refused_together():
    async def work():
        window = Window(16)
        assert window.size == 8
        for _ in range(5):
            window.slower(0.05)
        assert window.size == 4
        for _ in range(40):
            window.faster()
        return window.size

    assert 9 < asyncio.run(work()) < 11


def test_the_window_doubles_per_round_trip_until_there_is_backpressure():
    """Growth by one per round trip would need an hour to 256 calls of 20 seconds."""

    async def work():
        window = Window(256)
        sizes = []
        for _ in range(6):
            for _ in range(int(window.size)):
                window.faster()
            sizes.append(window.size)
        return sizes

    assert asyncio.run(work()) == [16, 32, 64, 128, 256, 256]


def test_retry_after_may_be_a_date():
    class Dated:
        headers = {"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}  # noqa: RUF012

    assert module._retry_after(Dated()) == 0
    Dated.headers = {"retry-after": "soon"}
    assert module._retry_after(Dated()) is None


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_unreadable_certificates_are_one_line(monkeypatch, tmp_path, content):
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    module._certificates.cache_clear()
    with pytest.raises(UserError, match=r"SSL_CERT_FILE .* cannot be read: .*; correct"):
        Client("https://judge.example/v1", "")
