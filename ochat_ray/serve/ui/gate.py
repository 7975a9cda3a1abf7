"""Access control in front of gradio: the login, a route allow list and the content policy.

gradio checks its own login only on some of its routes; those that cancel, edit, monitor or send
heartbeats are open. Here nothing behind the gate is reachable without a session, and routes that
the page does not need (uploads, files, proxying, the API pages) are not reachable at all.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from urllib.parse import parse_qs

import orjson
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ochat_ray.serve.admission import replay
from ochat_ray.serve.protocol.errors import ApiError, error_response

COOKIE = "ochat_ray_session"
SESSION_S = 12 * 3600
MAX_SESSIONS = 10_000

_READ = re.compile(
    r"/|/theme\.css|/(?:assets|static)/.+"
    r"|/gradio_api/(?:heartbeat/\w+|queue/data|app_id)"
)
_EVENTS = "/gradio_api/queue/data"
_RUN = "/gradio_api/queue/join"
_WRITE = frozenset({_RUN, "/gradio_api/cancel", "/gradio_api/reset"})

# Answers are untrusted text: even Markdown may only refer to this server, or an image's URL could
# exfiltrate a conversation. gradio compiles functions from strings ("eval"), and uses inline
# styles everywhere.
_POLICY = (
    "default-src 'none'; script-src 'self' 'nonce-{nonce}' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'self'; frame-ancestors 'none'"
)

CheckKey = Callable[[str], str | None]
"""Function that returns the name of an API key; None if the key is wrong."""


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Session:
    """Logged-in client. Its key stays in memory here, to be sent with each request."""

    name: str
    key: str
    expires: float


class Gate:
    """ASGI middleware around gradio's app. Without `check_key` there is no login.

    `on_left` is called with a page's id once no client reads its events. gradio itself notices only
    when it has something to send, so an abandoned answer would still be generated.
    """

    def __init__(
        self, app: ASGIApp, *, check_key: CheckKey | None, on_left: Callable[[str], None]
    ) -> None:
        self.app = app
        self.check_key = check_key
        self.on_left = on_left
        self._sessions: dict[str, Session] = {}
        self._login_page = files(__package__).joinpath("login.html").read_text(encoding="utf-8")

    def session(self, request: Request) -> Session | None:
        """Return the session in a request's cookie if it is valid."""
        token = request.cookies.get(COOKIE, "")
        session = self._sessions.get(token)
        if session is not None and session.expires < time.monotonic():
            del self._sessions[token]
            return None
        return session

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            # gradio has no websockets; its lifespan is entered where it is mounted.
            raise RuntimeError(f"the chat page has no {scope['type']}")
        request = Request(scope, receive)
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        try:
            response = await self._respond(request, path)
        except ApiError as error:
            response = error_response(error)
        if response is None:
            await self._pass(request, path, send)
        else:
            await response(scope, receive, send)

    async def _respond(self, request: Request, path: str) -> Response | None:
        """Return the gate's own response; None if gradio should answer."""
        read = request.method in ("GET", "HEAD")
        # A page of another site can send requests through a browser on this machine.
        if not read and request.headers.get("sec-fetch-site", "same-origin") != "same-origin":
            raise ApiError(403, "the chat page answers itself only", code="cross_site")
        if self.check_key is not None:
            if path == "/login" and not read:
                return await self._login(request)
            if path == "/logout" and not read:
                self._sessions.pop(request.cookies.get(COOKIE, ""), None)
                return _redirect(request)
            if self.session(request) is None:
                if path == "/" and read:
                    return self._ask_for_key(request, "")
                raise ApiError(401, "log in to the chat page first", code="not_logged_in")
        if not (_READ.fullmatch(path) if read else path in _WRITE):
            raise ApiError(404, "the chat page has no such route", code="not_found")
        return None

    async def _login(self, request: Request) -> Response:
        assert self.check_key is not None
        form = parse_qs((await request.body()).decode(errors="replace"))
        key = form.get("key", [""])[0].strip()
        name = self.check_key(key) if key else None
        if name is None:
            return self._ask_for_key(request, "That is not a key of this server.")
        while len(self._sessions) >= MAX_SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        token = secrets.token_urlsafe(32)
        expires = time.monotonic() + SESSION_S
        self._sessions[token] = Session(name=name, key=key, expires=expires)
        response = _redirect(request)
        response.set_cookie(
            COOKIE,
            token,
            max_age=SESSION_S,
            path=request.scope.get("root_path") or "/",
            secure=request.headers.get("x-forwarded-proto", request.url.scheme) == "https",
            httponly=True,
            samesite="strict",
        )
        return response

    def _ask_for_key(self, request: Request, problem: str) -> Response:
        page = self._login_page.replace("{problem}", problem)
        page = page.replace("{action}", f"{request.scope.get('root_path', '')}/login")
        policy = (
            "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; "
            "frame-ancestors 'none'"
        )
        headers = {"Content-Security-Policy": policy, "Cache-Control": "no-store"}
        return HTMLResponse(page, status_code=401, headers=headers)

    async def _pass(self, request: Request, path: str, send: Send) -> None:
        receive = request.receive
        if path == _RUN:
            body = await request.body()
            if not _text_only(body):
                await error_response(
                    ApiError(400, "the chat page takes text only", code="invalid_value")
                )(request.scope, receive, send)
                return
            receive = replay(body, receive)
        if path == "/" and request.method == "GET":
            await self._page(request, receive, send)
            return
        try:
            await self.app(request.scope, receive, send)
        finally:
            if path == _EVENTS:
                self.on_left(request.query_params.get("session_hash", ""))

    async def _page(self, request: Request, receive: Receive, send: Send) -> None:
        """Serve the page under the policy, which admits its own scripts by a nonce."""
        nonce = secrets.token_urlsafe(16)
        # Not compressed, since the body is modified here.
        headers = [pair for pair in request.scope["headers"] if pair[0] != b"accept-encoding"]
        head: Message = {}
        parts: list[bytes] = []

        async def rewrite(message: Message) -> None:
            if message["type"] == "http.response.start":
                head.update(message)
                return
            parts.append(message.get("body", b""))
            if message.get("more_body", False):
                return
            page = b"".join(parts).replace(b"<script", f'<script nonce="{nonce}"'.encode())
            out = MutableHeaders(raw=head["headers"])
            out["content-length"] = str(len(page))
            out["content-security-policy"] = _POLICY.format(nonce=nonce)
            out["cache-control"] = "no-store"
            out["referrer-policy"] = "no-referrer"
            await send(head)
            await send({"type": "http.response.body", "body": page})

        await self.app({**request.scope, "headers": headers}, receive, rewrite)


def _redirect(request: Request) -> Response:
    return RedirectResponse(f"{request.scope.get('root_path', '')}/", status_code=303)


def _text_only(body: bytes) -> bool:
    """Return whether a call's arguments are plain values.

    gradio treats an object of a certain form, in any argument, as a file: it fetches its URL or
    copies its path.
    """
    try:
        arguments = orjson.loads(body)["data"]
        return isinstance(arguments, list) and all(
            not isinstance(value, dict | list) for value in arguments
        )
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return False
