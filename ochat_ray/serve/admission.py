"""ASGI middleware: authentication, rate limits, body limits and the access log."""

from __future__ import annotations

import asyncio
import ipaddress
import uuid
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ochat_ray.serve.keys import KeyRing
from ochat_ray.serve.limits import Limits
from ochat_ray.serve.metrics import Metrics, Record
from ochat_ray.serve.protocol.errors import ApiError, error_response

OPEN_PATHS = frozenset({"/health", "/ping"})
"""Paths without authentication and logging: load balancers poll them often and without a key."""

BODY_TIMEOUT_S = 60.0
"""Timeout in seconds for receiving a request body."""

FORWARDING_HEADERS = ("forwarded", "x-forwarded-for", "x-real-ip")

MOST_WAITING = 1000
"""Maximum rejections that wait at once; further ones are sent at once.

An ingress replica has a limited number of requests in progress, and valid ones need it.
"""

ANONYMOUS = "anonymous"
"""Key name of all clients of a server without keys."""


class Admission:
    """Middleware that rejects a request with an OpenAI error body or forwards it, size-limited.

    The complete body is read here, up to `max_body_bytes`, so that a body without a content-length
    can also be rejected with a proper 413. The request's `Record` is `request.state.record`; it is
    complete when the response is.

    If there are keys, paths under `own_login` are forwarded without one: the app behind them has
    its own login.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: KeyRing,
        limits: Limits,
        metrics: Metrics,
        max_body_bytes: int,
        body_timeout_s: float = BODY_TIMEOUT_S,
        insecure_open: bool,
        routes: Sequence[str],
        own_login: str | None = None,
    ) -> None:
        self.app = app
        self.keys = keys
        self.limits = limits
        self.metrics = metrics
        self.max_body_bytes = max_body_bytes
        self.body_timeout_s = body_timeout_s
        self.insecure_open = insecure_open
        self.routes = frozenset(routes)
        self.own_login = own_login
        self._waiting = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Behind a route prefix `path` starts with it, and `root_path` holds the prefix.
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        if scope["type"] != "http" or path in OPEN_PATHS:
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        record = Record(
            request_id=headers.get("x-request-id") or uuid.uuid4().hex,
            route=path if path in self.routes else "other",
        )
        scope.setdefault("state", {})["record"] = record
        self.metrics.begin()
        try:
            await self._admit(path, scope, headers, receive, send, record)
        except Exception:
            record.status, record.code = 500, "internal_error"
            raise
        finally:
            self.metrics.end(record)

    async def _admit(
        self,
        path: str,
        scope: Scope,
        headers: Headers,
        receive: Receive,
        send: Send,
        record: Record,
    ) -> None:
        extra: dict[str, str] = {}
        body: bytes | None = None
        body_bytes = 0
        rejection: list[Message] = []

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                MutableHeaders(scope=message).update(extra)
                if 400 <= record.status < 500:
                    rejection.append(message)
                    return
            elif rejection:
                rejection.append(message)
                return
            await send(message)

        try:
            record.key = self._check_peer(path, scope, headers)
            if scope["method"] == "POST" and path in self.routes:
                extra = self.limits.admit(record.key)
            body = await self._read_body(headers, receive)
        except ApiError as error:
            record.code = error.code
            await error_response(error)(scope, receive, noting)
        if body is not None:
            body_bytes = len(body)
            replayed, body = replay(body, receive), None
            await self.app(scope, replayed, noting)
        if rejection:  # it waits alone: the body, and what was parsed from it, are freed
            await self._delay(record, body_bytes)
            for message in rejection:
                await send(message)

    async def _delay(self, record: Record, body_bytes: int) -> None:
        delay_s = self.limits.rejection_delay_s(record.key, body_bytes)
        if delay_s > 0 and self._waiting < MOST_WAITING:
            record.delayed_s = delay_s
            self._waiting += 1
            try:
                await asyncio.sleep(delay_s)
            finally:
                self._waiting -= 1

    def _check_peer(self, path: str, scope: Scope, headers: Headers) -> str:
        """Return the name of the key that was sent, if keys are required."""
        if not self.keys:
            if not self.insecure_open and not from_loopback(scope, headers):
                raise ApiError(
                    403,
                    "this server has no API keys configured and answers its own machine only; "
                    "configure keys to open it",
                    code="loopback_only",
                )
            return ANONYMOUS
        found = self.keys.find(headers.get("authorization"))
        if found is not None:
            return found.name
        if self.own_login and (path + "/").startswith(self.own_login + "/"):
            return ANONYMOUS
        raise ApiError(
            401,
            "missing or wrong API key; send `Authorization: Bearer KEY`",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )

    async def _read_body(self, headers: Headers, receive: Receive) -> bytes | None:
        """Return the complete body; None if the client disconnects first."""
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self.max_body_bytes:
            raise self._too_large()
        body = bytearray()
        deadline = asyncio.get_running_loop().time() + self.body_timeout_s
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise ApiError(
                    408,
                    f"the request body did not arrive within {self.body_timeout_s:g} s",
                    code="request_timeout",
                ) from None
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if len(body) > self.max_body_bytes:
                raise self._too_large()
            if not message.get("more_body", False):
                return bytes(body)

    def _too_large(self) -> ApiError:
        return ApiError(
            413,
            f"the request body is above the limit of {self.max_body_bytes} bytes",
            code="request_too_large",
        )


def from_loopback(scope: Scope, headers: Headers) -> bool:
    """Return whether the request comes from this machine, as far as the connection shows.

    A forwarding header means that a proxy on this machine forwards for another host. A `Host` that
    is another machine's name means that a page of that name sends requests through this machine's
    browser (DNS rebinding).
    """
    client = scope.get("client")
    if not client or any(name in headers for name in FORWARDING_HEADERS):
        return False
    host = headers.get("host", "").rpartition("@")[2]
    name = host.partition("]")[0][1:] if host.startswith("[") else host.partition(":")[0]
    return is_loopback(client[0]) and (name in ("", "localhost") or is_loopback(name))


def is_loopback(text: str) -> bool:
    """Return whether the text is a loopback address; host names are not."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives a body that was already read, and then what comes after it."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return first.pop() if first else await receive()

    return replayed
