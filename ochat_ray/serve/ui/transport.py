"""HTTP to an ASGI app in this process, as it streams; httpx's own transport reads to the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
from starlette.types import ASGIApp, Message, Scope

LEAVE_S = 5.0
"""How long an app may take to end by itself once its client has left."""


class StreamingTransport(httpx.AsyncBaseTransport):
    """One request, one task that runs the app, one message in flight between the two.

    Closing the response early is what a client that leaves is to a server: the app receives
    http.disconnect. `client` is the address that the app is told.
    """

    def __init__(self, app: ASGIApp, *, client: tuple[str, int]) -> None:
        self.app = app
        self.client = client

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """The response once its head is there; the body comes as the app sends it.

        Raises:
            httpx.RemoteProtocolError: the app failed, or ended before its response did.
        """
        exchange = _Exchange(self.app, self._scope(request), await request.aread())
        try:
            head = await exchange.next_message()
        except BaseException:
            await exchange.aclose()
            raise
        return httpx.Response(head["status"], headers=head.get("headers", []), stream=exchange)

    def _scope(self, request: httpx.Request) -> Scope:
        return {
            "type": "http",
            # Before 2.4 an app listens for http.disconnect; from it on, `send` must raise.
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": request.method,
            "scheme": request.url.scheme,
            "path": request.url.path,
            "raw_path": request.url.raw_path.partition(b"?")[0],
            "query_string": request.url.query,
            "root_path": "",
            "headers": [(name.lower(), value) for name, value in request.headers.raw],
            "client": self.client,
            "server": (request.url.host, request.url.port),
        }


class _Exchange(httpx.AsyncByteStream):
    def __init__(self, app: ASGIApp, scope: Scope, body: bytes) -> None:
        self._request: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        # Bounded, so that an app that is faster than its reader waits in `send`.
        self._messages: asyncio.Queue[Message] = asyncio.Queue(maxsize=1)
        self._left = asyncio.Event()
        self._complete = False
        self._task = asyncio.create_task(self._run(app, scope))

    async def _run(self, app: ASGIApp, scope: Scope) -> None:
        await app(scope, self._receive, self._send)

    async def _receive(self) -> Message:
        if self._request:
            return self._request.pop()
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        # What is sent to a client that left goes nowhere, as on a socket.
        if self._left.is_set():
            return
        await self._messages.put(message)

    async def next_message(self) -> Message:
        """The app's next message; raises where it ended without one."""
        if self._messages.empty():
            getting = asyncio.create_task(self._messages.get())
            try:
                await asyncio.wait({getting, self._task}, return_when=asyncio.FIRST_COMPLETED)
                if getting.done():
                    return getting.result()
            finally:
                getting.cancel()
            if self._messages.empty():
                raise httpx.RemoteProtocolError("the app ended before its response") from (
                    None if self._task.cancelled() else self._task.exception()
                )
        return self._messages.get_nowait()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while not self._complete:
            message = await self.next_message()
            self._complete = not message.get("more_body", False)
            if message.get("body"):
                yield message["body"]

    async def aclose(self) -> None:
        """Leave: the app is told, and is cancelled where it does not end."""
        self._left.set()
        if not self._messages.empty():
            self._messages.get_nowait()  # the app may be waiting for its place
        try:
            await asyncio.wait({self._task}, timeout=LEAVE_S)
        finally:
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=LEAVE_S)
        # Retrieved, and not raised: the response that the client saw is what counts.
        if self._task.done() and not self._task.cancelled():
            self._task.exception()
