"""An app in this process as an HTTP client sees it: as it streams, and until the client leaves."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import httpx
import pytest
from starlette.responses import StreamingResponse

from ochat_ray.serve.ui.completion import complete, newest
from ochat_ray.serve.ui.transport import StreamingTransport

ASK = {"model": "m", "messages": []}


def client(app):
    transport = StreamingTransport(app, client=("10.1.2.3", 4))
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1")


def streaming(generator):
    async def app(scope, receive, send):
        async with aclosing(generator()) as parts:
            await StreamingResponse(parts)(scope, receive, send)

    return app


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 20))


def test_the_app_is_told_what_was_asked():
    async def app(scope, receive, send):
        message = await receive()
        assert message == {"type": "http.request", "body": b'{"a":1}', "more_body": False}
        assert (scope["method"], scope["path"], scope["query_string"]) == ("POST", "/x", b"q=1")
        assert (b"authorization", b"Bearer k") in scope["headers"]
        assert scope["client"] == ("10.1.2.3", 4)
        await send({"type": "http.response.start", "status": 418, "headers": [(b"x-a", b"b")]})
        await send({"type": "http.response.body", "body": b"tea"})

    async def ask():
        async with client(app) as http:
            return await http.post("/x?q=1", json={"a": 1}, headers={"Authorization": "Bearer k"})

    response = run(ask())
    assert (response.status_code, response.headers["x-a"], response.text) == (418, "b", "tea")


def test_each_part_arrives_before_the_next_is_made():
    made, seen = [], []

    async def parts():
        for number in range(5):
            made.append(number)
            yield f"{number}"
            # One part waits in the transport and one in the app: no more is made ahead.
            assert len(made) - len(seen) <= 3

    async def ask():
        async with client(streaming(parts)) as http, http.stream("GET", "/") as response:
            async for part in response.aiter_bytes():
                seen.append(part)
                await asyncio.sleep(0)

    run(ask())
    assert b"".join(seen) == b"01234"
    assert len(seen) == 5


def test_leaving_closes_the_apps_generator():
    closed = []

    async def endless():
        try:
            while True:
                yield b"x"
                await asyncio.sleep(0)
        finally:
            closed.append(True)

    async def leave():
        async with client(streaming(endless)) as http, http.stream("GET", "/") as response:
            await anext(response.aiter_bytes())
        # By the time that the response is closed, and not when something is collected.
        return list(closed)

    assert run(leave()) == [True]


def test_a_cancelled_reader_closes_the_apps_generator():
    started, closed = [], []

    async def silent():
        try:
            yield b"x"
            await asyncio.sleep(3600)
        finally:
            closed.append(True)

    async def read():
        async with client(streaming(silent)) as http, http.stream("GET", "/") as response:
            async for part in response.aiter_bytes():
                started.append(part)

    async def cancel():
        task = asyncio.create_task(read())
        while not started:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return list(closed)

    assert run(cancel()) == [True]


def test_leaving_before_the_head_ends_the_app():
    ended = []

    async def app(scope, receive, send):
        try:
            await receive()
            await receive()
        finally:
            ended.append(True)

    async def leave():
        async with client(app) as http:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(http.get("/"), 0.05)
        return list(ended)

    assert run(leave()) == [True]


def test_an_app_that_fails_is_a_server_that_hangs_up():
    async def fails(scope, receive, send):
        raise RuntimeError("broken")

    async def fails_later(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise RuntimeError("broken")

    async def ends(scope, receive, send):
        pass

    async def ask(app):
        async with client(app) as http:
            await http.get("/")

    for app in (fails, fails_later, ends):
        with pytest.raises(httpx.RemoteProtocolError):
            run(ask(app))


def told(app):
    async def ask():
        transport = StreamingTransport(app, client=("127.0.0.1", 1))
        return [(p.text, p.problem) async for p in complete(transport, ASK, {})]

    return run(ask())


def test_an_answer_that_breaks_off_says_so():
    def event(text):
        return (
            b'data: {"choices": [{"delta": {"content": "%s"}, "finish_reason": null}]}\n\n' % text
        )

    async def broken():
        yield event(b"a")
        yield b'data: {"error": {"message": "it broke"}}\n\n'

    async def short():
        yield event(b"a")

    async def dies():
        yield event(b"a")
        raise RuntimeError("secret")

    assert told(streaming(broken)) == [("a", None), ("a", "it broke")]
    assert told(streaming(short)) == [("a", None), ("a", "the answer was interrupted")]
    assert told(streaming(dies)) == [("a", None), ("a", "the server failed to answer")]


def test_a_refusal_is_its_one_line():
    async def refuses(scope, receive, send):
        body = b'{"error": {"message": "at capacity"}}'
        await send({"type": "http.response.start", "status": 429, "headers": []})
        await send({"type": "http.response.body", "body": body})

    assert told(refuses) == [("", "at capacity")]


def test_drawing_skips_what_is_outdated_and_never_the_last():
    async def burst():
        for number in range(100):
            yield number
        await asyncio.sleep(0.1)
        yield 100

    async def draw():
        return [number async for number in newest(burst(), every_s=0.01, readers=set())]

    drawn = run(draw())
    assert drawn == [99, 100]


def test_drawing_that_is_given_up_closes_its_source():
    closed = []

    async def endless():
        try:
            while True:
                yield 1
                await asyncio.sleep(0.01)
        finally:
            closed.append(True)

    async def give_up():
        async with aclosing(newest(endless(), every_s=0.01, readers=set())) as drawn:
            await anext(drawn)
        return list(closed)

    assert run(give_up()) == [True]


def test_drawing_ends_when_its_reader_is_cancelled():
    async def silent():
        yield 1
        await asyncio.sleep(3600)

    async def cancel():
        readers = set()
        drawn = []
        async for number in newest(silent(), every_s=0.01, readers=readers):
            drawn.append(number)
            asyncio.get_running_loop().call_later(0.02, next(iter(readers)).cancel)
        return drawn, readers

    assert run(cancel()) == ([1], set())
