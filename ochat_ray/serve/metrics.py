"""Prometheus metrics, and one log line per request.

Source of the definitions: TTFT and TPOT as in vLLM's metrics; TPOT is the mean over an answer's
tokens after its first.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ochat_ray.serve.engines.base import Capacity

request_log = logging.getLogger("ochat_ray.serve.requests")
"""Logger with one JSON object per request, at INFO.

It contains no keys, and prompts and answers only if `log_text` is set.
"""

# What JSON leaves as it is, but terminals and log readers act on: DEL and C1, line and paragraph
# separators, marks that reverse or hide text.
_CONTROLS = re.compile("[\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_TOKEN_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)


@dataclass(kw_only=True, slots=True)
class Record:
    """Measurements of one request, filled while it is processed. Times are seconds since arrival.

    `status` is the status sent to the client; `code` is that of the error, also if a stream broke;
    status 499 means that the client disconnected.
    """

    request_id: str
    route: str
    key: str = ""
    model: str = ""
    replica: str = ""
    status: int = 499
    code: str | None = None
    stream: bool = False
    choices: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish_reasons: list[str] = field(default_factory=list)
    queue_s: float | None = None
    ttft_s: float | None = None
    delayed_s: float | None = None
    seconds: float = 0.0
    ignored: list[str] = field(default_factory=list)
    prompt: Any = None
    answer: list[str] | None = None
    arrived: float = field(default_factory=time.perf_counter)

    def elapsed_s(self) -> float:
        """Return the seconds since the request arrived."""
        return time.perf_counter() - self.arrived

    @property
    def tpot_s(self) -> float | None:
        """Seconds per token after the first; None with fewer than two tokens."""
        later = self.completion_tokens - self.choices
        if self.ttft_s is None or later < 1:
            return None
        # Choices run concurrently: each generates its share of the tokens in the same time.
        return (self.seconds - self.ttft_s) * max(self.choices, 1) / later


class Metrics:
    """Metrics of one ingress replica, in a separate registry.

    Attributes:
        in_flight: Number of requests in progress.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.in_flight = 0
        by = ("model", "replica")
        self._requests = Counter(
            "ochat_ray_requests",
            "Requests ended",
            ("model", "route", "status", "code"),
            registry=self.registry,
        )
        self._in_flight = Gauge(
            "ochat_ray_requests_in_flight",
            "Requests under way in this ingress replica",
            registry=self.registry,
        )
        self._delayed = Counter(
            "ochat_ray_delayed_rejections",
            "Rejections that waited, since their key had too many",
            ("key",),
            registry=self.registry,
        )
        self._key_used = Gauge(
            "ochat_ray_key_last_used_timestamp_seconds",
            "Last request with a key, in seconds since the epoch",
            ("key",),
            registry=self.registry,
        )
        self._prompt = Counter("ochat_ray_prompt_tokens", "Tokens in", by, registry=self.registry)
        self._generated = Counter(
            "ochat_ray_generated_tokens", "Tokens out", by, registry=self.registry
        )
        self._ttft = self._histogram("time_to_first_token", "Time to first token", _SECONDS)
        self._tpot = self._histogram(
            "time_per_output_token", "Mean after the first", _TOKEN_SECONDS
        )
        self._queue = self._histogram("queue_time", "Time before a replica took it", _SECONDS)
        self._seconds = self._histogram("request_time", "Time from arrival to end", _SECONDS)
        self._running = self._gauge("running_requests", "Requests in an engine's batch")
        self._waiting = self._gauge("waiting_requests", "Requests that an engine holds back")
        self._cache = self._gauge("kv_cache_usage_ratio", "Used share of the key-value cache")

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(
            f"ochat_ray_{name}_seconds", text, ("model", "replica"), buckets=buckets,
            registry=self.registry,
        )  # fmt: skip

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"ochat_ray_{name}", text, ("model", "replica"), registry=self.registry)

    def begin(self) -> None:
        """Count an arrived request."""
        self.in_flight += 1
        self._in_flight.set(self.in_flight)

    def end(self, record: Record) -> None:
        """Count a finished request and write its log line."""
        record.seconds = record.elapsed_s()
        self.in_flight -= 1
        self._in_flight.set(self.in_flight)
        self._requests.labels(
            record.model, record.route, str(record.status), record.code or ""
        ).inc()
        self._seconds.labels(record.model, record.replica).observe(record.seconds)
        if record.delayed_s is not None:
            self._delayed.labels(record.key).inc()
        if record.key:
            self._key_used.labels(record.key).set_to_current_time()
        if record.replica:
            self._prompt.labels(record.model, record.replica).inc(record.prompt_tokens)
            self._generated.labels(record.model, record.replica).inc(record.completion_tokens)
        for histogram, value in (
            (self._queue, record.queue_s),
            (self._ttft, record.ttft_s),
            (self._tpot, record.tpot_s),
        ):
            if value is not None:
                histogram.labels(record.model, record.replica).observe(value)
        request_log.info("%s", _line(record))

    def expose(self, model: str, loads: Mapping[str, Capacity]) -> bytes:
        """Return the metrics in Prometheus text format, with current loads by replica."""
        for gauge in (self._running, self._waiting, self._cache):
            gauge.clear()
        for replica, load in loads.items():
            self._running.labels(model, replica).set(load.running)
            self._waiting.labels(model, replica).set(load.waiting)
            used = load.kv_tokens_used / load.kv_tokens if load.kv_tokens else 0.0
            self._cache.labels(model, replica).set(used)
        return generate_latest(self.registry)


def _line(record: Record) -> str:
    values = asdict(record) | {"tpot_s": record.tpot_s}
    del values["arrived"]
    kept = {
        name: round(value, 6) if isinstance(value, float) else value
        for name, value in values.items()
        if value not in (None, "", [])
    }
    return _CONTROLS.sub(lambda c: f"\\u{ord(c[0]):04x}", json.dumps(kept, ensure_ascii=False))
