"""Asks an OpenAI-compatible endpoint, as fast as it lets us and no faster."""

from __future__ import annotations

import asyncio
import email.utils
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import httpx

from ochat_ray.errors import UserError

Read = TypeVar("Read")

LONGEST_PAUSE_S = 120.0


class CallFailedError(Exception):
    """A call that was given up; its text is one line. Others go on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """An endpoint's answer. `logprobs` are OpenAI's entries, a token each, where asked for."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    logprobs: list[dict[str, Any]] = field(default_factory=list)


class Window:
    """How many calls may be under way: half as many when told to slow down, slowly more again.

    Additive increase and multiplicative decrease, as in TCP.
    """

    def __init__(self, most: int) -> None:
        self.size = float(min(most, 8))
        self._most = most
        self._open = 0
        self._resume = 0.0
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """A place among those under way, once there is one and no pause."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._open < max(1, int(self.size)))
            self._open += 1
        try:
            while (wait := self._resume - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            yield
        finally:
            async with self._changed:
                self._open -= 1
                self._changed.notify_all()

    def faster(self) -> None:
        """A call was answered."""
        self.size = min(self._most, self.size + 1 / self.size)

    def slower(self, pause_s: float) -> None:
        """The endpoint has too much to do: nothing new for so long."""
        now = time.monotonic()
        if now >= self._resume:  # once for all that were under way together
            self.size = max(1.0, self.size / 2)
        self._resume = max(self._resume, now + pause_s)


class Endpoint(Protocol):
    """What can be asked of an OpenAI-compatible endpoint."""

    async def chat(self, body: Mapping[str, Any]) -> Reply:
        """The answer to the body of a chat completion."""

    async def describe(self, model: str) -> dict[str, Any]:
        """What its list of models says of one."""


class Client:
    """One endpoint, such as `http://127.0.0.1:8000/v1`; `attempts` are those of one call.

    Rate limits (429), failures of the server (5xx), of the connection and of time are tried again,
    after the pause that `Retry-After` asks for or a growing one; nothing else is.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str,
        *,
        at_once: int = 32,
        timeout_s: float = 600,
        attempts: int = 8,
        first_pause_s: float = 1.0,
    ) -> None:
        self._base_url = base_url.rstrip("/")
        self._attempts = attempts
        self._first_pause_s = first_pause_s
        self.window = Window(at_once)
        self._http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(timeout_s, connect=30),
            limits=httpx.Limits(max_connections=at_once),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._http.aclose()

    async def chat(self, body: Mapping[str, Any]) -> Reply:
        """The answer to the body of a chat completion.

        Raises:
            UserError: the key is refused, or the model or the address is not there.
            CallFailedError: the request is refused, or the last attempt failed.
        """
        return await self._ask(
            "POST", "chat/completions", _reply, attempts=self._attempts, json=dict(body)
        )

    async def describe(self, model: str) -> dict[str, Any]:
        """What the endpoint's list of models says of one; empty where it says nothing."""
        try:
            listed = await self._ask("GET", "models", _listed, attempts=2)
        except (UserError, CallFailedError):  # a key may be for chats alone
            return {}
        return next((entry for entry in listed if entry.get("id") == model), {})

    async def _ask(
        self,
        method: str,
        path: str,
        read: Callable[[httpx.Response], Read | None],
        *,
        attempts: int,
        **options: Any,
    ) -> Read:
        why = ""
        for attempt in range(attempts):
            async with self.window.place():
                try:
                    response = await self._http.request(
                        method, f"{self._base_url}/{path}", **options
                    )
                except httpx.TransportError as error:
                    why, asked = f"{type(error).__name__} {error}".strip(), None
                else:
                    if response.status_code == 200 and (found := read(response)) is not None:
                        self.window.faster()
                        return found
                    why = _why(response)
                    self._raise_if_final(response, why)
                    asked = _retry_after(response)
                    if response.status_code in (429, 503):
                        self.window.slower(self._pause_s(attempt, asked))
            if attempt + 1 < attempts:
                await asyncio.sleep(self._pause_s(attempt, asked))
        raise CallFailedError(f"given up after {attempts} attempts: {why}")

    def _pause_s(self, attempt: int, asked: float | None) -> float:
        if asked is not None:
            return min(asked, LONGEST_PAUSE_S)
        grown = self._first_pause_s * 2**attempt
        return min(grown, LONGEST_PAUSE_S) * random.uniform(0.5, 1)

    def _raise_if_final(self, response: httpx.Response, why: str) -> None:
        status = response.status_code
        if status in (401, 403):
            raise UserError(f"{self._base_url} refuses the key: {why}")
        if status in (404, 405):
            raise UserError(f"{self._base_url} does not know what is asked for: {why}")
        if 300 <= status < 500 and status not in (408, 409, 429):
            raise CallFailedError(why)


def _reply(response: httpx.Response) -> Reply | None:
    """None for a body that is no chat completion, or is cut off."""
    try:
        body = response.json()
        choice, usage = body["choices"][0], body.get("usage") or {}
        logprobs = (choice.get("logprobs") or {}).get("content") or []
        return Reply(
            text=choice["message"]["content"] or "",
            finish_reason=choice["finish_reason"] or "",
            prompt_tokens=int(usage.get("prompt_tokens") or 0),
            completion_tokens=int(usage.get("completion_tokens") or 0),
            logprobs=list(logprobs),
        )
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        return None


def _listed(response: httpx.Response) -> list[dict[str, Any]]:
    """The entries of a list of models; empty for a body that is none."""
    try:
        return [entry for entry in response.json()["data"] if isinstance(entry, dict)]
    except (ValueError, TypeError, KeyError):
        return []


def _why(response: httpx.Response) -> str:
    """One line; without the request, which may hold what is not for logs."""
    try:
        text = str(response.json()["error"]["message"])
    except (ValueError, TypeError, KeyError):
        text = "no chat completion" if response.status_code == 200 else response.reason_phrase
    return f"{response.status_code} {' '.join(text.split())[:300]}"


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds; the header holds them or a date (RFC 9110, 10.2.3)."""
    value = response.headers.get("retry-after", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
