"""The first and the last to see a request: who may ask, how much, and what is recorded of it."""

from __future__ import annotations

import asyncio
import ipaddress
import uuid
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ochat_ray.serve.errors import ApiError, error_response
from ochat_ray.serve.keys import KeyRing
from ochat_ray.serve.limits import Limits
from ochat_ray.serve.metrics import Metrics, Record

OPEN_PATHS = frozenset({"/health"})
"""Answered to anyone and not recorded: a load balancer asks without a key, and often."""

BODY_TIMEOUT_S = 60.0
"""Seconds from a request's head to the end of its body."""

FORWARDING_HEADERS = ("forwarded", "x-forwarded-for", "x-real-ip")

ANONYMOUS = "anonymous"
"""The name of whoever asks a server without keys."""


class Admission:
    """ASGI middleware: refuses with an OpenAI error body, or passes a request of bounded size on.

    The body is read here as a whole, up to `max_body_bytes`, so that a body that is too long is
    refused with a proper 413 even where no content-length announced it. The request's `Record`
    is `request.state.record`, and is complete when the response is.

    Paths under `own_login` are passed on without a key where there are keys: what is there asks
    for one itself.
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

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Behind a route prefix `path` starts with it, and `root_path` says how long it is.
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

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                MutableHeaders(scope=message).update(extra)
            await send(message)

        try:
            record.key = self._check_peer(path, scope, headers)
            if scope["method"] == "POST" and path in self.routes:
                extra = self.limits.admit(record.key)
            body = await self._read_body(headers, receive)
        except ApiError as error:
            record.code = error.code
            await error_response(error)(scope, receive, noting)
            return
        if body is not None:
            await self.app(scope, _replay(body, receive), noting)

    def _check_peer(self, path: str, scope: Scope, headers: Headers) -> str:
        """The name of the key that was sent, where keys are needed."""
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
        """The whole body; None where the client went away before its end."""
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
    """Whether the request comes from this machine, as far as the connection can tell.

    A forwarding header means that a proxy on this machine speaks for someone else. A `Host` that
    is another's name means that a page of that name asks through this machine's browser (DNS
    rebinding).
    """
    client = scope.get("client")
    if not client or any(name in headers for name in FORWARDING_HEADERS):
        return False
    host = headers.get("host", "").rpartition("@")[2]
    name = host.partition("]")[0][1:] if host.startswith("[") else host.partition(":")[0]
    return is_loopback(client[0]) and (name in ("", "localhost") or is_loopback(name))


def is_loopback(text: str) -> bool:
    """Whether that is an address of loopback; a name is none."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _replay(body: bytes, receive: Receive) -> Receive:
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return first.pop() if first else await receive()

    return replayed
