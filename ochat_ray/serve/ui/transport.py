"""Streaming HTTP transport to an ASGI app in this process.

httpx's own ASGI transport reads the complete response first.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
from starlette.types import ASGIApp, Message, Scope

LEAVE_S = 5.0
"""Seconds that an app has to finish after its client disconnected."""


class StreamingTransport(httpx.AsyncBaseTransport):
    """Transport that runs the app in one task per request, with one message in flight.

    Closing the response early is equivalent to a disconnect: the app receives http.disconnect.
    `client` is the peer address shown to the app.
    """

    def __init__(self, app: ASGIApp, *, client: tuple[str, int]) -> None:
        self.app = app
        self.client = client

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Return the response once its head is available; the body streams as the app sends it.

        Raises:
            httpx.RemoteProtocolError: The app failed, or ended before its response did.
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
        # Data sent to a disconnected client is discarded, as on a socket.
        if self._left.is_set():
            return
        await self._messages.put(message)

    async def next_message(self) -> Message:
        """Return the app's next message; raise if it ended without one."""
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
        """Disconnect: notify the app, and cancel it if it does not finish in time."""
        self._left.set()
        if not self._messages.empty():
            self._messages.get_nowait()  # the app may be waiting for free space
        try:
            await asyncio.wait({self._task}, timeout=LEAVE_S)
        finally:
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=LEAVE_S)
        # Retrieved, and not raised: the response that the client saw is what counts.
        if self._task.done() and not self._task.cancelled():
            self._task.exception()
