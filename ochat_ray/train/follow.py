"""Progress of a run in the terminal, read from its metrics.jsonl."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ochat_ray.run_dir import RunDir
from ochat_ray.train.metrics import read_metrics

_RECENT_STEPS = 20

_SLOW = 1 / 3
"""Share of a step from which communication between workers is reported as a bottleneck."""


@contextmanager
def follow_metrics(run: RunDir) -> Iterator[None]:
    """Print a line for every new line of metrics.jsonl within the block."""
    ended = threading.Event()

    def follow() -> None:
        known, printed = list(map(_mark, read_metrics(run))), False
        while True:
            last = ended.wait(1.0)
            lines = read_metrics(run)
            marks = list(map(_mark, lines))
            pairs = enumerate(zip(known, marks, strict=False))
            same = next((n for n, (a, b) in pairs if a != b), min(len(known), len(marks)))
            if printed and same < len(known):  # a new attempt resumed from a checkpoint
                print(f"{'train':>10}  workers were lost; resuming", file=sys.stderr, flush=True)
            for number, line in enumerate(lines[same:], same):
                print(progress_line(line, lines[:number]), file=sys.stderr, flush=True)
                printed = True
            known = marks
            if last:
                return

    thread = threading.Thread(target=follow, daemon=True)
    started = time.monotonic()
    thread.start()
    print(f"{'train':>10}  starting workers", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        ended.set()
        thread.join()
        print(f"{'train':>10}  {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


def _mark(line: dict[str, Any]) -> tuple[Any, ...]:
    """Return values that differ between lines of the same step in two attempts."""
    return line["step"], "eval_loss" in line, line.get("seconds")


def progress_line(metrics: dict[str, Any], before: Sequence[dict[str, Any]] = ()) -> str:
    """Return a line of metrics.jsonl as text; `before` are the lines before it."""
    head = f"{'train':>10}  step {metrics['step']} of {metrics['total_steps']}"
    if "eval_loss" in metrics:
        return (
            f"{head} · held-out loss {metrics['eval_loss']:.4f} · end of turn chosen "
            f"{100 * metrics['eval_end_of_turn']:.0f}% of the time"
        )
    recent = [m["seconds"] for m in before[-_RECENT_STEPS:] if "seconds" in m]
    recent.append(metrics["seconds"])
    left = (metrics["total_steps"] - metrics["step"]) * sum(recent) / len(recent)
    rate = metrics["tokens"] / metrics["seconds"] / metrics["world_size"]
    return (
        f"{head} · loss {metrics['loss']:.4f} · lr {metrics['learning_rate']:.2e} · grad norm "
        f"{metrics['grad_norm']:.2f} · {rate:,.0f} tokens/s per device · "
        f"MFU {100 * metrics['mfu']:.0f}% · {_slow_link(metrics)}{_duration(left)} left"
    )


def _slow_link(metrics: dict[str, Any]) -> str:
    """Return a note if the network between workers, and not a device, is the bottleneck."""
    share = metrics.get("exchange", 0.0)  # missing in runs of earlier versions
    return f"slow link: {100 * share:.0f}% is communication · " if share >= _SLOW else ""


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    if minutes < 10:
        return f"{60 * minutes + seconds} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
