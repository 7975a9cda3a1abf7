"""Client of an OpenAI-compatible endpoint with retries, backoff and adaptive concurrency."""

from __future__ import annotations

import asyncio
import email.utils
import random
import re
import ssl
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import cache
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from ochat_ray.errors import UserError
from ochat_ray.evaluate.config import EvaluateConfig
from ochat_ray.evaluate.replies import (
    Failure,
    Reply,
    encode,
    failure_of,
    is_page,
    is_stream,
    read_models,
    read_reply,
    visible,
)

Read = TypeVar("Read")

LONGEST_PAUSE_S = 120.0
GIVEN_UP_IN_A_ROW = 3
"""Calls that fail all attempts, without a success in between, before the endpoint counts as down"""
REJECTED_IN_A_ROW = 10
"""Same, for calls rejected with another status than those that name the reason."""
REASONS_PRINTED = 5

_NO_MONEY = re.compile(
    r"insufficient_quota|exceeded_current_quota|billing|insufficient_(?:balance|credit|funds)"
    r"|arrear|\b1113\b"  # the last is Zhipu's
)
_NO_MONEY_TEXT = re.compile(
    r"insufficient (?:balance|credit|funds)|credit balance is too low|余额不足|欠费"
)
_CONTENT = re.compile(
    r"content.?(?:filter|polic|management|exists risk)|inappropriate content|data_inspection"
    r"|moderation|flagged|safety|usage polic|context.?(?:length|window|size)|token count .*exceed"
    r"|(?:maximum|max) (?:context|input|prompt|model)|too long|too many (?:input )?tokens"
    r"|string_above_max_length|max_new_tokens. must be"
)
_UNSUPPORTED = re.compile(
    r"unsupported|not support|n['’]t support|deprecated|unknown|unrecogni[sz]ed|unexpected"
    r"|not (?:permitted|allowed)|extra (?:inputs|fields)|extraneous"
    r"|only (?:\S+ ){1,3}(?:allowed|supported|permitted)"
)
_CHANGES: dict[str, str | None] = {
    "max_tokens": "max_completion_tokens",
    "max_completion_tokens": "max_tokens",
    "temperature": None,
    "top_p": None,
}
"""Fields that some models refuse: their other name, or None to leave them out."""


class CallFailedError(Exception):
    """Call that failed permanently, with a one-line message. Other calls continue."""

    param = ""
    """Field of the request that the endpoint does not support, if that is the reason."""


class RefusedError(CallFailedError):
    """Call that the endpoint refuses because of its content: filtered, or too long."""


class Window:
    """Concurrency limit that doubles per round trip at first, until there is backpressure.

    Then it is halved, and grows slowly: slow start, additive increase and multiplicative decrease,
    as in TCP.
    """

    def __init__(self, most: int) -> None:
        self.size = float(min(most, 8))
        self._most = most
        self._is_starting = True
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
        self.size = min(self._most, self.size + (1 if self._is_starting else 1 / self.size))

    def slower(self, pause_s: float) -> None:
        """Halve the limit and start no new call for `pause_s` seconds."""
        now = time.monotonic()
        self._is_starting = False
        if now >= self._resume:  # once for all calls that were in flight together
            self.size = max(1.0, self.size / 2)
        self._resume = max(self._resume, now + pause_s)


def sendable_key(api_key: str, base_url: str) -> str:
    """Return the API key without blanks around it.

    Raises:
        UserError: The key cannot be sent.
    """
    api_key = api_key.strip()
    if not (api_key.isascii() and api_key.isprintable()):
        # Without the key: a client of HTTP would show it in its own error.
        raise UserError(f"the API key for {base_url} has characters that no key has")
    return api_key


class Client:
    """HTTP client for one base URL, such as `http://127.0.0.1:8000/v1`.

    Rate limits (429), server errors (5xx), connection errors and timeouts are retried, up to
    `attempts` times per call, after the pause given by `Retry-After` or an exponential backoff.
    Other errors are not retried. A field that a model does not support is renamed or left out in
    this call and all later ones. The first failures are printed.

    Raises:
        UserError: The API key cannot be sent.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str,
        *,
        max_concurrency: int = EvaluateConfig.max_concurrency,
        timeout_s: float = EvaluateConfig.timeout_s,
        attempts: int = EvaluateConfig.attempts,
        first_pause_s: float = 1.0,
    ) -> None:
        self._base_url = base_url.rstrip("/")
        api_key = sendable_key(api_key, self._base_url)
        self._changes: dict[str, dict[str, str | None]] = defaultdict(dict)
        self._given_up = self._rejected = 0
        self._printed: set[str] = set()
        self._attempts = attempts
        self._first_pause_s = first_pause_s
        self._timeout_s = timeout_s
        self.window = Window(max_concurrency)
        try:
            self._http = httpx.AsyncClient(
                headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
                timeout=httpx.Timeout(timeout_s, connect=30),
                limits=httpx.Limits(max_connections=max_concurrency),
                verify=_certificates(),
            )
        except (ImportError, ValueError, httpx.InvalidURL) as error:
            raise UserError(
                f"the proxy in the environment (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY) cannot be "
                f"used: {error}; unset it, or list the endpoint's host in NO_PROXY"
            ) from error

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
            UserError: The key or the account is rejected, the model or address does not exist, or
                the endpoint is down.
            RefusedError: The endpoint refuses the content of the request.
            CallFailedError: The request is rejected, or the last attempt failed.
        """
        changes = self._changes[body["model"]] if "model" in body else {}
        while True:
            names = {name: changes.get(name, name) for name in body}
            sent = {new: body[name] for name, new in names.items() if new}
            try:
                reply, attempts = await self._ask(
                    "POST", "chat/completions", read_reply, attempts=self._attempts,
                    content=encode(sent), headers={"Content-Type": "application/json"},
                )  # fmt: skip
            except RefusedError as error:
                self._print(f"refused because of its content: {error}")
                raise
            except CallFailedError as error:
                if not self._learn(error.param, sent, changes):
                    error = _with_advice(error, sent)
                    self._print(str(error))
                    self._check_rejected(error)
                    raise error from None
            else:
                self._given_up = self._rejected = 0
                used = {name: new for name, new in changes.items() if name in body}
                return replace(reply, attempts=attempts, changed=used)

    def _learn(self, param: str, sent: Mapping[str, Any], changes: dict[str, str | None]) -> bool:
        """Return whether the call can be repeated without the unsupported field."""
        if not param or param not in sent:
            return False
        if param in changes:
            return True  # learned since this call was sent
        if param not in _CHANGES or param in changes.values():
            return False
        changes[param] = _CHANGES[param]
        self._print(f"does not support {param}: {changes[param] or 'nothing'} is sent instead")
        return True

    def _check_rejected(self, error: CallFailedError) -> None:
        """Count a failed call.

        Raises:
            UserError: No call succeeds.
        """
        if str(error).startswith("failed after"):
            self._given_up += 1
        else:
            self._rejected += 1
        if self._given_up >= GIVEN_UP_IN_A_ROW or self._rejected >= REJECTED_IN_A_ROW:
            count = max(self._given_up, self._rejected)
            raise UserError(f"{self._base_url}: {count} calls in a row failed, the last: {error}")

    def _print(self, text: str) -> None:
        """Print a reason once, and only the first ones."""
        if text not in self._printed and len(self._printed) < REASONS_PRINTED:
            self._printed.add(text)
            print(f"{self._base_url}: {text}", file=sys.stderr, flush=True)

    async def describe(self, model: str) -> dict[str, Any]:
        """Return the entry of a model in the endpoint's list of models; empty if there is none."""
        try:
            listed = await self.models()
        except (UserError, CallFailedError):  # a key may be valid for chat only
            return {}
        return next((entry for entry in listed if entry.get("id") == model), {})

    async def models(self) -> list[dict[str, Any]]:
        """Return the endpoint's list of models.

        Raises:
            UserError: The key is rejected, the address does not exist, or the endpoint is down.
            CallFailedError: The request is rejected, or the last attempt failed.
        """
        listed, _ = await self._ask("GET", "models", read_models, attempts=2)
        return listed

    async def _ask(
        self,
        method: str,
        path: str,
        read: Callable[[httpx.Response], Read | None],
        *,
        attempts: int,
        **options: Any,
    ) -> tuple[Read, int]:
        """Return what `read` makes of the response, and the number of attempts."""
        why = ""
        for attempt in range(attempts):
            async with self.window.place():
                try:
                    # httpx limits the time between two chunks, not that of a request.
                    async with asyncio.timeout(self._timeout_s):
                        response = await self._http.request(
                            method, f"{self._base_url}/{path}", **options
                        )
                except TimeoutError:
                    why, asked = f"no complete reply within {self._timeout_s:g} s", None
                except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
                    raise UserError(f"{self._base_url} is no URL of an endpoint: {error}") from None
                except httpx.HTTPError as error:
                    why, asked = visible(f"{type(error).__name__} {error}"), None
                else:
                    if response.status_code == 200 and (found := read(response)) is not None:
                        self.window.faster()
                        return found, attempt + 1
                    failure = failure_of(response)
                    why = failure.why
                    self._raise_if_final(response, failure)
                    asked = _retry_after(response)
                    if failure.status in (429, 503):
                        self.window.slower(self._pause_s(attempt, asked))
            if attempt + 1 < attempts:
                self._print(f"{why}; trying again")
                await asyncio.sleep(self._pause_s(attempt, asked))
        raise CallFailedError(f"failed after {attempts} attempts: {why}")

    def _pause_s(self, attempt: int, asked: float | None) -> float:
        if asked is not None:
            return min(asked, LONGEST_PAUSE_S)
        grown = self._first_pause_s * 2**attempt
        return min(grown, LONGEST_PAUSE_S) * random.uniform(0.5, 1)

    def _raise_if_final(self, response: httpx.Response, failure: Failure) -> None:
        status, why, text = failure.status, failure.why, failure.why.lower()
        code = failure.code.lower()
        if status == 200 and is_stream(response):
            raise UserError(
                f"{self._base_url} streams its replies, although that was not asked for; give an "
                "endpoint that does not"
            )
        of_client = 400 <= status < 500 or (status == 200 and "no json" not in text)
        no_money = _NO_MONEY.search(code) or _NO_MONEY_TEXT.search(text)
        if status == 402 or (of_client and no_money):
            raise UserError(f"{self._base_url} refuses the account: {why}")
        if status == 413 or (status in (400, 403, 422, 451) and _CONTENT.search(f"{code} {text}")):
            raise RefusedError(why)
        if status in (401, 403):
            raise UserError(f"{self._base_url} refuses the key: {why}")
        if status in (404, 405):
            raise UserError(f"{self._base_url} does not know what is asked for: {why}")
        if 300 <= status < 400 or (status == 200 and is_page(response)):
            where = visible(response.headers.get("location", ""))
            raise UserError(f"{self._base_url} is no URL of an endpoint: {why} {where}".strip())
        if 300 <= status < 500 and status not in (408, 409, 425, 429):
            error = CallFailedError(why)
            if _UNSUPPORTED.search(f"{code} {text}"):
                error.param = failure.param
            raise error


@cache
def _certificates() -> ssl.SSLContext:
    """Return httpx's default TLS settings, read once for all clients."""
    try:
        return httpx.create_ssl_context()
    except OSError as error:  # ssl.SSLError is one
        raise UserError(
            f"the certificates of SSL_CERT_FILE or SSL_CERT_DIR cannot be read: {error}; correct "
            "the variable, or unset it"
        ) from error


def _with_advice(error: CallFailedError, sent: Mapping[str, Any]) -> CallFailedError:
    """Return the error with the options that change the field of the request that it names."""
    text = str(error)
    names = [name for name in sent if name not in ("model", "messages")]
    named = [name for name in names if name == error.param or re.search(rf"\b{name}\b", text)]
    if text.startswith("failed after") or not named:
        return error
    name = named[0]
    limit = " (limits: --max-tokens, --judge-max-tokens)" if "tokens" in name else ""
    return CallFailedError(
        f"{text}; change {name} or leave it out with --body (answers) or --judge-body (judge), "
        f"such as '{{\"{name}\": null}}'{limit}"
    )


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
