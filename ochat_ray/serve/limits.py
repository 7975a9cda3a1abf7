"""Rate limits per key: of requests and tokens, with their headers, and of rejected requests.

All are token buckets. A bucket holds one minute's quota and refills evenly. A request is admitted
if at least one request and one token are left. Its tokens are deducted as they become known, so a
bucket can go negative, and later requests wait until it recovers. No answer is ever truncated by a
limit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from ochat_ray.serve.protocol.errors import ApiError

_MINUTE_S = 60.0

REJECTIONS_PER_MINUTE = 1200
"""Rejected requests per key and minute that are answered without a delay."""

REJECTED_BYTES = 100_000
"""Size of a body that counts as one more rejected request."""

LONGEST_DELAY_S = 5.0
"""Maximum delay of a rejection, in seconds."""


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


class _Buckets:
    """Buckets by name. Full ones are forgotten when another key's is added.

    This loses nothing; but those of the same key may be in use, and about to be taken from.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._buckets: dict[tuple[str, str], Bucket] = {}

    def of(self, key: str, unit: str, per_minute: int) -> Bucket:
        if (key, unit) not in self._buckets:
            self._buckets = {
                name: bucket
                for name, bucket in self._buckets.items()
                if name[0] == key or bucket.level() < bucket.per_minute
            }
            self._buckets[key, unit] = Bucket(per_minute, self._clock)
        return self._buckets[key, unit]


class Limits:
    """Rate limits of every key; None is no limit."""

    def __init__(
        self,
        *,
        requests_per_minute: int | None,
        tokens_per_minute: int | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._per_minute = {"requests": requests_per_minute, "tokens": tokens_per_minute}
        self._buckets = _Buckets(clock)

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

    def rejection_delay_s(self, key: str, body_bytes: int) -> float:
        """Count a rejected request, and return the seconds to wait before the client learns it.

        A client that repeats an invalid request in a loop would otherwise keep the processor from
        other clients' requests. Valid requests never wait for this. A debt is never larger than
        that of the longest delay, so that a key is soon answered at once again.
        """
        bucket = self._buckets.of(key, "rejections", REJECTIONS_PER_MINUTE)
        most = LONGEST_DELAY_S * REJECTIONS_PER_MINUTE / _MINUTE_S
        bucket.take(min(1 + body_bytes / REJECTED_BYTES, bucket.level() + most))
        return bucket.seconds_until(0)

    def _of(self, key: str) -> dict[str, Bucket]:
        return {
            unit: self._buckets.of(key, unit, per_minute)
            for unit, per_minute in self._per_minute.items()
            if per_minute is not None
        }


def _headers(buckets: dict[str, Bucket]) -> dict[str, str]:
    headers = {}
    for unit, bucket in buckets.items():
        headers[f"x-ratelimit-limit-{unit}"] = str(bucket.per_minute)
        headers[f"x-ratelimit-remaining-{unit}"] = str(max(0, math.floor(bucket.level())))
        headers[f"x-ratelimit-reset-{unit}"] = f"{bucket.seconds_until(bucket.per_minute):.3f}s"
    return headers
