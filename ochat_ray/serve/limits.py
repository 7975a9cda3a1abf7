"""Rate limits per key, in requests and tokens per minute: token buckets and their headers.

A bucket holds one minute's quota and refills evenly. A request is admitted if at least one request
and one token are left. Its tokens are deducted as they become known, so a bucket can go negative,
and later requests wait until it recovers. No answer is ever truncated by a limit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from ochat_ray.serve.protocol.errors import ApiError

_MINUTE_S = 60.0


class Bucket:
    """Token bucket with capacity `per_minute`, refilled evenly; its level may go negative."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._level = float(per_minute)
        self._at = clock()

    def level(self) -> float:
        """Return the current level."""
        now = self._clock()
        filled = (now - self._at) * self.per_minute / _MINUTE_S
        self._level = min(float(self.per_minute), self._level + filled)
        self._at = now
        return self._level

    def take(self, amount: float) -> None:
        """Deduct an amount, even if it exceeds the level."""
        self._level = self.level() - amount

    def seconds_until(self, level: float) -> float:
        """Return the seconds until the bucket reaches this level."""
        return max(0.0, (level - self.level()) * _MINUTE_S / self.per_minute)


class Limits:
    """Rate limits of every key; None is no limit. Keys unused for a minute are forgotten.

    A bucket that is not negative is full again after a minute, so this loses nothing.
    """

    def __init__(
        self,
        *,
        requests_per_minute: int | None,
        tokens_per_minute: int | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._per_minute = {"requests": requests_per_minute, "tokens": tokens_per_minute}
        self._clock = clock
        self._buckets: dict[tuple[str, str], Bucket] = {}

    def admit(self, key: str) -> dict[str, str]:
        """Count one request of a key, and return the headers with the remaining quota.

        Raises:
            ApiError: 429 with Retry-After.
        """
        buckets = self._of(key)
        for unit, bucket in buckets.items():
            wait_s = bucket.seconds_until(1)
            if wait_s > 0:
                raise ApiError(
                    429,
                    f"this key's limit of {bucket.per_minute} {unit} per minute is reached; "
                    f"try again in {math.ceil(wait_s)} s",
                    code="rate_limit_exceeded",
                    headers={"Retry-After": str(math.ceil(wait_s)), **_headers(buckets)},
                )
        if "requests" in buckets:
            buckets["requests"].take(1)
        return _headers(buckets)

    def take_tokens(self, key: str, tokens: int) -> None:
        """Count tokens of a prompt or an answer."""
        bucket = self._of(key).get("tokens")
        if bucket is not None:
            bucket.take(tokens)

    def _of(self, key: str) -> dict[str, Bucket]:
        found = {}
        for unit, per_minute in self._per_minute.items():
            if per_minute is None:
                continue
            if (key, unit) not in self._buckets:
                self._forget_full()
                self._buckets[key, unit] = Bucket(per_minute, self._clock)
            found[unit] = self._buckets[key, unit]
        return found

    def _forget_full(self) -> None:
        self._buckets = {
            name: bucket
            for name, bucket in self._buckets.items()
            if bucket.level() < bucket.per_minute
        }


def _headers(buckets: dict[str, Bucket]) -> dict[str, str]:
    headers = {}
    for unit, bucket in buckets.items():
        headers[f"x-ratelimit-limit-{unit}"] = str(bucket.per_minute)
        headers[f"x-ratelimit-remaining-{unit}"] = str(max(0, math.floor(bucket.level())))
        headers[f"x-ratelimit-reset-{unit}"] = f"{bucket.seconds_until(bucket.per_minute):.3f}s"
    return headers
