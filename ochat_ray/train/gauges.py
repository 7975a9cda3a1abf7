"""Metrics of a training as gauges of Ray, which every node exports for Prometheus."""

from __future__ import annotations

import time

from ray.util.metrics import Gauge


class Gauges:
    """Gauges with the latest values of one run, named by its output directory.

    Ray adds the prefix `ray_`: the loss is `ray_ochat_ray_train_loss`. They disappear with the
    worker that writes them.
    """

    def __init__(self, output: str) -> None:
        self._tags = {"output": output}
        self._gauges: dict[str, Gauge] = {}

    def write(self, step: int, values: dict[str, float]) -> None:
        """Set the gauges of a line of metrics.jsonl, and the time of the last line."""
        self._set("train_step", step)
        for name, value in values.items():
            self._set(name.replace("/", "_"), value)
        self._set("train_progress_timestamp_seconds", time.time())

    def flush(self) -> None:
        """Do nothing: Ray collects the values."""

    def close(self, failed: bool) -> None:
        """Do nothing: the values disappear with the process."""

    def _set(self, name: str, value: float) -> None:
        if name not in self._gauges:
            text = "Training: see metrics.jsonl in docs/training.md"
            self._gauges[name] = Gauge(f"ochat_ray_{name}", text, tag_keys=("output",))
        self._gauges[name].set(value, tags=self._tags)
