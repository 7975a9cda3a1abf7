from __future__ import annotations

import httpx
import pytest
from starlette.responses import PlainTextResponse

from ochat_ray.errors import UserError
from ochat_ray.serve.admission import Admission, read_keys

KEYS = "# ours\nalice:secret-of-alice\n\nsecret-of-nobody\n"


async def echo(scope, receive, send):
    body = (await receive())["body"]
    await PlainTextResponse(f"{scope['path']} {len(body)}")(scope, receive, send)


@pytest.fixture
def keys(tmp_path):
    path = tmp_path / "keys"
    path.write_text(KEYS)
    return read_keys(path)


def ask(app, path="/v1/models", *, peer="127.0.0.1", **request):
    import asyncio

    async def send():
        transport = httpx.ASGITransport(app=app, client=(peer, 1234))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return await client.request("POST", path, **request)

    return asyncio.run(send())


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize("key", ["secret-of-alice", "secret-of-nobody"])
def test_a_key_of_the_file_opens_from_anywhere(keys, key):
    app = Admission(echo, keys=keys, max_body_bytes=100)
    assert ask(app, peer="10.0.0.9", headers=bearer(key)).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [{}, bearer("wrong"), bearer(""), {"Authorization": "secret-of-alice"}, bearer("alice")],
)
def test_any_other_key_is_401_with_an_openai_body(keys, headers):
    response = ask(Admission(echo, keys=keys, max_body_bytes=100), headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.json()["error"]["code"] == "invalid_api_key"
    assert "secret" not in response.text


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"])
def test_without_keys_this_machine_is_answered(peer):
    assert ask(Admission(echo, keys=(), max_body_bytes=100), peer=peer).status_code == 200


@pytest.mark.parametrize("peer", ["10.0.0.9", "::ffff:10.0.0.9", "fe80::1", "unix", ""])
def test_without_keys_nobody_else_is(peer):
    response = ask(Admission(echo, keys=(), max_body_bytes=100), peer=peer)
    assert response.status_code == 403
    assert response.json()["error"]["code"] == "loopback_only"


def test_without_keys_a_proxy_on_this_machine_speaks_for_others():
    app = Admission(echo, keys=(), max_body_bytes=100)
    assert ask(app, headers={"X-Forwarded-For": "10.0.0.9"}).status_code == 403


def test_health_needs_no_key(keys):
    app = Admission(echo, keys=keys, max_body_bytes=100)
    assert ask(app, "/health", peer="10.0.0.9").status_code == 200


@pytest.mark.parametrize(("size", "status"), [(100, 200), (101, 413)])
@pytest.mark.parametrize("announced", [True, False])
def test_body_limit_with_and_without_content_length(size, status, announced):
    async def parts():
        for _ in range(size):
            yield b"x"

    response = ask(
        Admission(echo, keys=(), max_body_bytes=100), content=b"x" * size if announced else parts()
    )
    assert response.status_code == status
    if status == 200:
        assert response.text == "/v1/models 100"
    else:
        assert response.json()["error"]["code"] == "request_too_large"


@pytest.mark.parametrize("text", ["", "# nothing\n", "alice:\n", "two words\n", "a: b c\n"])
def test_a_key_file_that_does_not_hold_is_one_line_without_the_key(tmp_path, text):
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_keys(path)
    assert "\n" not in str(caught.value)
    assert "two words" not in str(caught.value)


def test_keys_are_kept_as_digests_only(keys):
    assert [key.name for key in keys] == ["alice", "line 4"]
    assert "secret" not in repr(keys)
