"""Nothing of gradio is reached without a key, and what the page does not need is not reached."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys

import httpx
import pytest
from starlette.responses import Response

from ochat_ray.serve.ui.gate import COOKIE, Gate
from tests.serve.ui.conftest import KEY, KEYS, Led, page_app

pytest.importorskip("gradio", reason="the ui extra is not installed")


class Recorder:
    """In the place of gradio's app: which of its paths are reached."""

    def __init__(self):
        self.paths = []

    async def __call__(self, scope, receive, send):
        self.paths.append(scope["path"].removeprefix("/ui"))
        await Response()(scope, receive, send)


@pytest.fixture
def app(tokenizer):
    return page_app(tokenizer, Led(tokenizer), keys=KEYS)


@pytest.fixture
def gate(app):
    return next(route.app for route in app.routes if isinstance(getattr(route, "app", None), Gate))


@pytest.fixture
def reached(gate, routes, monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(gate, "app", recorder)
    return recorder.paths


def requests(app, *calls, client=("127.0.0.1", 1)):
    """The responses to some requests of one client, which keeps its cookies."""

    async def send():
        transport = httpx.ASGITransport(app=app, client=client)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            return [
                await http.request(method, path, **dict(arguments))
                for method, path, arguments in calls
            ]

    return asyncio.run(send())


LOGIN = ("POST", "/ui/login", {"data": {"key": KEY}})


@pytest.fixture
def routes(gate):
    """All of gradio's routes, each with a parameter that leads nowhere."""
    found = set()
    for route in gate.app.routes:
        path = re.sub(r"\{[^}]*\}", "etc", route.path)
        for method in getattr(route, "methods", None) or {"GET", "POST"}:
            found.add((method, f"/ui{path}", ()))
    assert len(found) > 60
    return sorted(found)


def test_without_a_key_no_route_of_gradio_is_reached(app, routes, reached):
    for call, response in zip(routes, requests(app, *routes), strict=True):
        assert response.status_code == 401, call
    made_up = requests(
        app, ("GET", "/ui/", {"headers": {"Cookie": f"{COOKIE}=x"}}), ("OPTIONS", "/ui/", {})
    )
    assert [response.status_code for response in made_up] == [401, 401]
    assert reached == []


def test_with_a_key_only_what_the_page_needs_is_reached(app, routes, reached):
    # queue/join has a body that the gate refuses: see the test of its arguments.
    requests(app, LOGIN, *[route for route in routes if route[1] != "/ui/logout"])
    pages = "/ /theme.css /assets/etc /static/etc"
    calls = "queue/data cancel heartbeat/etc app_id reset"
    assert set(reached) == {*pages.split(), *(f"/gradio_api/{name}" for name in calls.split())}


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file//etc/passwd",
        "/assets/%2e%2e/%2e%2e/%2e%2e/%2e%2e/routes.py",
        "/assets//etc/passwd",
        "/static/%2e%2e/%2e%2e/routes.py",
        "/assets/..%2f..%2froutes.py",
        "/gradio_api/proxy=http://127.0.0.1:1/",
        "/config",
        "/gradio_api/custom_component/x/client/y/z",
    ],
)
def test_no_file_of_the_server_can_be_read(app, path):
    _, response = requests(app, LOGIN, ("GET", f"/ui{path}", {}))
    assert response.status_code in (403, 404)
    assert "root:" not in response.text


def test_nothing_can_be_uploaded(app, reached):
    upload = ("POST", "/ui/gradio_api/upload", {"files": {"files": b"x"}})
    _, response = requests(app, LOGIN, upload)
    assert response.status_code == 404
    assert reached == []


def test_no_argument_can_be_a_file(app, reached):
    file = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    for data in ([file], [[file]], {"a": file}, None):
        call = {"json": {"data": data, "fn_index": 1, "session_hash": "s"}}
        _, response = requests(app, LOGIN, ("POST", "/ui/gradio_api/queue/join", call))
        assert response.status_code == 400, data
    assert reached == []


def test_a_wrong_key_is_refused_and_the_right_one_works(app):
    wrong, page = requests(app, ("POST", "/ui/login", {"data": {"key": "no"}}), ("GET", "/ui/", {}))
    assert (wrong.status_code, page.status_code) == (401, 401)
    assert "not a key" in wrong.text
    assert "set-cookie" not in wrong.headers
    right, page = requests(app, LOGIN, ("GET", "/ui/", {}))
    assert (right.status_code, right.headers["location"]) == (303, "/ui/")
    cookie = right.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict", "Path=/ui"} <= set(cookie.split("; "))
    assert page.status_code == 200
    assert KEY not in "".join([right.text, str(right.headers), page.text, str(page.headers)])


def test_the_key_is_in_no_representation_of_a_session(app, gate):
    requests(app, LOGIN)
    assert KEY not in repr(vars(gate))


def test_logging_out_ends_the_session(app):
    _, out, page = requests(app, LOGIN, ("POST", "/ui/logout", {}), ("GET", "/ui/", {}))
    assert (out.status_code, page.status_code) == (303, 401)


def test_a_session_ends_by_itself(app, monkeypatch):
    monkeypatch.setattr("ochat_ray.serve.ui.gate.SESSION_S", -1)
    _, page = requests(app, LOGIN, ("GET", "/ui/", {}))
    assert page.status_code == 401


def test_another_sites_page_cannot_use_this_browser(app, reached):
    headers = {"Sec-Fetch-Site": "cross-site"}
    call = ("POST", "/ui/gradio_api/queue/join", {"headers": headers, "json": {"data": []}})
    _, response = requests(app, LOGIN, call)
    assert response.status_code == 403
    assert reached == []


def test_the_page_is_under_a_policy_that_its_own_scripts_pass(app):
    _, first, second = requests(app, LOGIN, ("GET", "/ui/", {}), ("GET", "/ui/", {}))
    policy = first.headers["content-security-policy"]
    nonce = re.search(r"'nonce-([\w-]+)'", policy).group(1)
    assert first.text.count("<script") == first.text.count(f'<script nonce="{nonce}"') > 2
    assert "default-src 'none'" in policy
    assert "unsafe-inline" not in policy.split("style-src")[0]
    assert not re.findall(r"https?:", policy)
    assert nonce not in second.text


def test_a_prefix_is_kept(app):
    from starlette.applications import Starlette
    from starlette.routing import Mount

    outer = Starlette(routes=[Mount("/chat", app)])
    to_page, login, page = requests(
        outer,
        ("GET", "/chat/ui", {}),
        ("POST", "/chat/ui/login", {"data": {"key": KEY}}),
        ("GET", "/chat/ui/", {}),
    )
    assert (to_page.status_code, to_page.headers["location"]) == (307, "/chat/ui/")
    assert login.headers["location"] == "/chat/ui/"
    assert "Path=/chat/ui" in login.headers["set-cookie"]
    assert '"root":"http://127.0.0.1/chat/ui"' in page.text


def test_without_keys_the_page_is_open_where_the_api_is(tokenizer):
    app = page_app(tokenizer, Led(tokenizer))
    (here,) = requests(app, ("GET", "/ui/", {}))
    (there,) = requests(app, ("GET", "/ui/", {}), client=("10.0.0.9", 1))
    (proxied,) = requests(app, ("GET", "/ui/", {"headers": {"X-Forwarded-For": "10.0.0.9"}}))
    assert [here.status_code, there.status_code, proxied.status_code] == [200, 403, 403]


def test_gradio_is_imported_when_it_is_mounted_and_not_before():
    code = "import sys, ochat_ray.serve.ui; print('gradio' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
