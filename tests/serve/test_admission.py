from __future__ import annotations

import asyncio
import json
import weakref

import httpx
import pytest
from starlette.responses import PlainTextResponse

from ochat_ray.serve.admission import ANONYMOUS, Admission
from ochat_ray.serve.keys import KeyRing, read_keys
from ochat_ray.serve.limits import Limits
from ochat_ray.serve.metrics import Metrics

KEYS = "# ours\nalice:secret-of-alice\n\nsecret-of-nobody\n"


def admission(keys=(), **options):
    defaults = {
        "keys": KeyRing(keys),
        "limits": Limits(requests_per_minute=None, tokens_per_minute=None),
        "metrics": Metrics(),
        "max_body_bytes": 100,
        "insecure_open": False,
        "routes": ("/v1/models",),
    }
    return Admission(echo, **(defaults | options))


async def echo(scope, receive, send):
    body = (await receive())["body"]
    await PlainTextResponse(f"{scope['path']} {len(body)}")(scope, receive, send)


@pytest.fixture
def keys(tmp_path):
    path = tmp_path / "keys"
    path.write_text(KEYS)
    path.chmod(0o600)
    return read_keys(path)


def ask(app, path="/v1/models", *, peer="127.0.0.1", host="127.0.0.1", **request):
    async def send():
        transport = httpx.ASGITransport(app=app, client=(peer, 1234))
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as client:
            return await client.request("POST", path, **request)

    return asyncio.run(send())


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize("key", ["secret-of-alice", "secret-of-nobody"])
def test_a_key_of_the_file_opens_from_anywhere(keys, key):
    app = admission(keys)
    assert ask(app, peer="10.0.0.9", headers=bearer(key)).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [{}, bearer("wrong"), bearer(""), {"Authorization": "secret-of-alice"}, bearer("alice")],
)
def test_any_other_key_is_401_with_an_openai_body(keys, headers):
    response = ask(admission(keys), headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.json()["error"]["code"] == "invalid_api_key"
    assert "secret" not in response.text


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"])
def test_without_keys_this_machine_is_answered(peer):
    assert ask(admission(), peer=peer).status_code == 200


@pytest.mark.parametrize("peer", ["10.0.0.9", "::ffff:10.0.0.9", "fe80::1", "unix", ""])
def test_without_keys_nobody_else_is(peer):
    response = ask(admission(), peer=peer)
    assert response.status_code == 403
    assert response.json()["error"]["code"] == "loopback_only"


def test_without_keys_a_proxy_on_this_machine_speaks_for_others():
    app = admission()
    assert ask(app, headers={"X-Forwarded-For": "10.0.0.9"}).status_code == 403


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1:8000", "127.9.9.9", "[::1]:8000"])
def test_without_keys_this_machine_may_be_called_by_its_names(host):
    assert ask(admission(), host=host).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "10.0.0.9", "localhost.evil.example"]
)
def test_without_keys_a_page_of_another_name_is_kept_out(keys, host):
    assert ask(admission(), host=host).status_code == 403
    assert ask(admission(keys), host=host, headers=bearer("secret-of-alice")).status_code == 200


def test_health_needs_no_key(keys):
    app = admission(keys)
    assert ask(app, "/health", peer="10.0.0.9").status_code == 200


@pytest.mark.parametrize(("size", "status"), [(100, 200), (101, 413)])
@pytest.mark.parametrize("announced", [True, False])
def test_body_limit_with_and_without_content_length(size, status, announced):
    async def parts():
        for _ in range(size):
            yield b"x"

    response = ask(admission(), content=b"x" * size if announced else parts())
    assert response.status_code == status
    if status == 200:
        assert response.text == "/v1/models 100"
    else:
        assert response.json()["error"]["code"] == "request_too_large"


def test_a_body_that_stops_half_way_ends_at_a_deadline():
    async def half():
        yield b"x"
        await asyncio.sleep(60)

    app = admission(body_timeout_s=0.2)
    response = ask(app, content=half())
    assert response.status_code == 408
    assert response.json()["error"]["code"] == "request_timeout"


def test_insecure_open_answers_everyone():
    assert ask(admission(insecure_open=True), peer="10.0.0.9").status_code == 200


def test_what_has_a_login_of_its_own_is_passed_on_only_where_there_are_keys(keys):
    app = admission(keys, own_login="/ui")
    assert ask(app, "/ui", peer="10.0.0.9").status_code == 200
    assert ask(app, "/ui/queue/join", peer="10.0.0.9").status_code == 200
    assert ask(app, "/uix", peer="10.0.0.9").status_code == 401
    assert ask(admission(own_login="/ui"), "/ui", peer="10.0.0.9").status_code == 403


def test_limits_are_each_keys_own_and_told_in_headers(keys):
    limits = Limits(requests_per_minute=2, tokens_per_minute=None)
    app = admission(keys, limits=limits)
    first, second, third = (ask(app, headers=bearer("secret-of-alice")) for _ in range(3))
    assert [r.status_code for r in (first, second, third)] == [200, 200, 429]
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert third.headers["retry-after"] == "30"
    assert third.json()["error"]["code"] == "rate_limit_exceeded"
    assert ask(app, headers=bearer("secret-of-nobody")).status_code == 200


def test_rejections_in_a_loop_are_delayed_and_nothing_else_is(keys, monkeypatch, caplog):
    waited = []

    async def sleep(seconds):
        waited.append(seconds)

    monkeypatch.setattr("ochat_ray.serve.admission.asyncio.sleep", sleep)
    metrics = Metrics()
    limits = Limits(requests_per_minute=None, tokens_per_minute=None, clock=lambda: 0.0)
    app = admission(keys, metrics=metrics, limits=limits)
    alice, big = bearer("secret-of-alice"), "x" * 101
    with caplog.at_level("INFO", logger="ochat_ray.serve.requests"):
        for _ in range(1210):
            assert ask(app, headers=alice, content=big).status_code == 413
        assert waited == pytest.approx([0.05 * n for n in range(1, 11)])  # 20 a second
        assert ask(app, headers=bearer("secret-of-nobody"), content=big).status_code == 413
        assert ask(app, headers=alice).status_code == 200
    delayed = [json.loads(r.message).get("delayed_s") for r in caplog.records]
    assert delayed == [None] * 1200 + [round(seconds, 6) for seconds in waited] + [None, None]
    counted = metrics.expose("m", {}).decode()
    assert 'delayed_rejections_total{key="alice"} 10.0' in counted


class Parsed:
    """Stand-in for what an app parses from a body."""


def test_a_rejection_waits_without_its_body_and_only_so_many_at_once(monkeypatch):
    held, waiting = [], []

    async def rejecting(scope, receive, send):
        await receive()
        parsed = Parsed()
        held.append(weakref.ref(parsed))
        await PlainTextResponse("no", status_code=400)(scope, receive, send)

    async def sleep(_seconds):
        waiting.append([found for found in held if found()])
        await asyncio.Event().wait()

    async def flood(app):
        sent = []

        async def receive():
            return {"type": "http.request", "body": b"x", "more_body": False}

        async def send(message):
            sent.append(message["type"])

        scope = {"type": "http", "method": "POST", "path": "/v1/models", "headers": []}
        tasks = [asyncio.create_task(app(dict(scope), receive, send)) for _ in range(3)]
        done, pending = await asyncio.wait(tasks, timeout=0.1)
        for task in pending:
            task.cancel()
        await asyncio.wait(tasks)
        return len(done), sent

    monkeypatch.setattr("ochat_ray.serve.admission.asyncio.sleep", sleep)
    monkeypatch.setattr("ochat_ray.serve.admission.MOST_WAITING", 2)
    app = admission(insecure_open=True)
    app.app = rejecting
    app.limits.rejection_delay_s(ANONYMOUS, 10**9)
    assert asyncio.run(flood(app)) == (1, ["http.response.start", "http.response.body"])
    assert waiting == [[], []]
    assert app._waiting == 0


def test_a_request_is_recorded_without_its_key(keys, caplog):
    metrics = Metrics()
    with caplog.at_level("INFO", logger="ochat_ray.serve.requests"):
        app = admission(keys, metrics=metrics)
        ask(app, headers=bearer("secret-of-alice") | {"x-request-id": "r7"})
        ask(app, "/x", headers=bearer("secret-of-mallory"))
        ask(app, "/health")
    lines = [json.loads(record.message) for record in caplog.records]
    assert [(line["route"], line["status"]) for line in lines] == [
        ("/v1/models", 200),
        ("other", 401),
    ]
    assert (lines[0]["request_id"], lines[0]["key"]) == ("r7", "alice")
    assert lines[1]["code"] == "invalid_api_key"
    assert "secret" not in caplog.text
    counted = metrics.expose("m", {}).decode()
    assert 'route="other",status="401"} 1.0' in counted
    assert 'key_last_used_timestamp_seconds{key="alice"} ' in counted
    assert counted.count("key_last_used_timestamp_seconds{") == 1
    assert "ochat_ray_requests_in_flight 0.0" in counted
