"""Progress lines that read the same in a terminal and in a job's log."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import TextIO


@dataclass
class Progress:
    """Counter that prints a line with the rate, at most once every `interval_s` seconds."""

    stage: str
    unit: str
    total: int | None = None
    interval_s: float = 5.0
    stream: TextIO = field(default_factory=lambda: sys.stderr)
    done: int = 0
    _started: float = field(default_factory=time.monotonic)
    _printed: float = field(default_factory=time.monotonic)

    def add(self, count: int, note: str = "") -> None:
        """Add `count` units; `note` is appended to the printed line."""
        self.done += count
        # `finish` prints the last line.
        if self.done != self.total and time.monotonic() - self._printed >= self.interval_s:
            self._print(note)

    def finish(self, note: str = "") -> float:
        """Print the last line and return the elapsed seconds."""
        self._print(note)
        return time.monotonic() - self._started

    def _print(self, note: str) -> None:
        self._printed = time.monotonic()
        elapsed = self._printed - self._started
        share = f" of {self.total:,}" if self.total is not None else ""
        rate = f"{self.done / elapsed:,.0f}/s" if elapsed > 0 else ""
        parts = [f"{self.done:,}{share} {self.unit}", rate, f"{elapsed:.0f} s", note]
        print(
            f"{self.stage:>10}  " + " · ".join(p for p in parts if p), file=self.stream, flush=True
        )
