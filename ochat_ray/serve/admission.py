"""Who may ask, and how much: API keys, the loopback rule and the body limit, before any parsing."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ochat_ray.errors import UserError
from ochat_ray.serve.protocol import ApiError, error_response

OPEN_PATHS = frozenset({"/health"})
"""Answered to anyone: a load balancer asks without a key."""

FORWARDING_HEADERS = ("forwarded", "x-forwarded-for", "x-real-ip")


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiKey:
    """A key's name and SHA-256 digest; the key itself is not kept."""

    name: str
    digest: bytes


def hash_key(key: str) -> bytes:
    """SHA-256. Keys are random and long, so no slow password hash is needed."""
    return hashlib.sha256(key.encode()).digest()


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """The keys of a file: one `key` or `name:key` a line; blank lines and # comments are skipped.

    Raises:
        UserError: the file cannot be read, has no key, or has one with a blank in it. No message
            shows any part of a key.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read API keys from {path}: {type(error).__name__}") from error
    keys = []
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        name, colon, key = text.partition(":")
        if not colon:
            name, key = f"line {number}", text
        if not key or len(key.split()) != 1 or key != key.strip():
            raise UserError(f"line {number} of {path} is not `key` or `name:key`")
        keys.append(ApiKey(name=name.strip(), digest=hash_key(key)))
    if not keys:
        raise UserError(f"no API key in {path}; write one `key` or `name:key` a line")
    return tuple(keys)


def find_key(keys: Sequence[ApiKey], authorization: str | None) -> ApiKey | None:
    """The key that an Authorization header carries; all are compared, each in constant time."""
    scheme, _, token = (authorization or "").partition(" ")
    digest = hash_key(token.strip())
    found = None
    for key in keys:
        if hmac.compare_digest(key.digest, digest):
            found = key
    return found if scheme.lower() == "bearer" else None


def from_loopback(scope: Scope, headers: Headers) -> bool:
    """Whether the request comes from this machine, as far as the connection can tell.

    A forwarding header means that a proxy on this machine speaks for someone else.
    """
    client = scope.get("client")
    if not client or any(name in headers for name in FORWARDING_HEADERS):
        return False
    try:
        address = ipaddress.ip_address(client[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


class Admission:
    """ASGI middleware: refuses with an OpenAI error body, or passes a request of bounded size on.

    The body is read here as a whole, up to `max_body_bytes`, so that a body that is too long is
    refused with a proper 413 even where no content-length announced it.
    """

    def __init__(self, app: ASGIApp, *, keys: Sequence[ApiKey], max_body_bytes: int) -> None:
        self.app = app
        self.keys = tuple(keys)
        self.max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            headers = Headers(scope=scope)
            self._check_peer(scope, headers)
            body = await self._read_body(headers, receive)
        except ApiError as error:
            await error_response(error)(scope, receive, send)
            return
        if body is None:
            return
        await self.app(scope, _replay(body, receive), send)

    def _check_peer(self, scope: Scope, headers: Headers) -> None:
        # Behind a route prefix `path` starts with it, and `root_path` says how long it is.
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if path in OPEN_PATHS:
            return
        if not self.keys:
            if not from_loopback(scope, headers):
                raise ApiError(
                    403,
                    "this server has no API keys configured and answers its own machine only; "
                    "configure keys to open it",
                    code="loopback_only",
                )
        elif find_key(self.keys, headers.get("authorization")) is None:
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
        while True:
            message = await receive()
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


def _replay(body: bytes, receive: Receive) -> Receive:
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return first.pop() if first else await receive()

    return replayed
