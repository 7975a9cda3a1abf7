"""Client of an OpenAI-compatible endpoint with retries, backoff and adaptive concurrency."""

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
    """Call that failed permanently, with a one-line message. Other calls continue."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """Answer of an endpoint; `logprobs` are OpenAI's entries, one per token, if requested."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    logprobs: list[dict[str, Any]] = field(default_factory=list)


class Window:
    """Concurrency limit that is halved on backpressure and then grows slowly.

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
        """Hold one slot, acquired once the limit and any pause permit."""
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
        """Raise the limit after a successful call."""
        self.size = min(self._most, self.size + 1 / self.size)

    def slower(self, pause_s: float) -> None:
        """Halve the limit and start no new call for `pause_s` seconds."""
        now = time.monotonic()
        if now >= self._resume:  # once for all calls that were in flight together
            self.size = max(1.0, self.size / 2)
        self._resume = max(self._resume, now + pause_s)


class Endpoint(Protocol):
    """Operations of an OpenAI-compatible endpoint."""

    async def chat(self, body: Mapping[str, Any]) -> Reply:
        """Return the answer to a chat completion request."""

    async def describe(self, model: str) -> dict[str, Any]:
        """Return the entry of a model in the endpoint's list of models."""


class Client:
    """HTTP client for one base URL, such as `http://127.0.0.1:8000/v1`.

    Rate limits (429), server errors (5xx), connection errors and timeouts are retried, up to
    `attempts` times per call, after the pause given by `Retry-After` or an exponential backoff.
    Other errors are not retried.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str,
        *,
        max_concurrency: int = 32,
        timeout_s: float = 600,
        attempts: int = 8,
        first_pause_s: float = 1.0,
    ) -> None:
        self._base_url = base_url.rstrip("/")
        self._attempts = attempts
        self._first_pause_s = first_pause_s
        self.window = Window(max_concurrency)
        self._http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(timeout_s, connect=30),
            limits=httpx.Limits(max_connections=max_concurrency),
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
        """Return the answer to a chat completion request.

        Raises:
            UserError: The key is rejected, or the model or address does not exist.
            CallFailedError: The request is rejected, or the last attempt failed.
        """
        return await self._ask(
            "POST", "chat/completions", _reply, attempts=self._attempts, json=dict(body)
        )

    async def describe(self, model: str) -> dict[str, Any]:
        """Return the entry of a model in the endpoint's list of models; empty if there is none."""
        try:
            listed = await self._ask("GET", "models", _listed, attempts=2)
        except (UserError, CallFailedError):  # a key may be valid for chat only
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
        raise CallFailedError(f"failed after {attempts} attempts: {why}")

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
    """Parse a chat completion; None if the body is another one or truncated."""
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
    """Return the entries of a list of models; empty for any other body."""
    try:
        return [entry for entry in response.json()["data"] if isinstance(entry, dict)]
    except (ValueError, TypeError, KeyError):
        return []


def _why(response: httpx.Response) -> str:
    """Describe a failed response in one line, without the request, which may be confidential."""
    try:
        text = str(response.json()["error"]["message"])
    except (ValueError, TypeError, KeyError):
        text = "no chat completion" if response.status_code == 200 else response.reason_phrase
    return f"{response.status_code} {' '.join(text.split())[:300]}"


def _retry_after(response: httpx.Response) -> float | None:
    """Return the Retry-After header in seconds; it holds seconds or a date (RFC 9110, 10.2.3)."""
    value = response.headers.get("retry-after", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
