"""Figures of the report as text and plain values: shares, table rows, histograms."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar of a histogram: values from `first` to `last`, or to infinity if that is None."""

    first: int
    last: int | None
    count: int

    @property
    def label(self) -> str:
        """Range of values of the bar."""
        if self.last is None:
            return f"{self.first:,} or more"
        return f"{self.first:,}" if self.last == self.first else f"{self.first:,}–{self.last:,}"


def bars_of(counts: Counter[int], *, span: int, bars_a_span: int, bars: int) -> list[Bar]:
    """Return the bars of a histogram from 1, with `bars_a_span` bars per `span` values.

    A multiple of `span` is the last value of its bar, and the last bar includes all larger values.
    """
    heights = [0] * bars
    for value, count in counts.items():
        heights[min(bars - 1, max(0, value - 1) * bars_a_span // span)] += count
    ends = [-(-i * span // bars_a_span) for i in range(bars + 1)]
    return [
        Bar(first=ends[i] + 1, last=ends[i + 1] if i < bars - 1 else None, count=height)
        for i, height in enumerate(heights)
    ]


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """A histogram with labels below it, at shares of the width.

    Attributes:
        bars: The bars, from left to right.
        unit: Unit of the values, for labels.
        ticks: Positions (0 to 1) and texts of the labels.
        mark: Index of the bar before which a labelled line is drawn; bars from there on are
            coloured.
    """

    bars: Sequence[Bar]
    unit: str
    ticks: Sequence[tuple[float, str]]
    mark: tuple[int, str] | None = None

    @property
    def highest(self) -> int:
        """The count of the highest bar, at least 1."""
        return max((bar.count for bar in self.bars), default=0) or 1


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a table of counts: n of a total, as a bar from `start` of the total on."""

    label: str
    n: float
    total: float
    start: float = 0.0
    kind: Literal["", "sum", "drop"] = ""
    drop: bool = False
    """True if the bar shows what is lost."""


def place(n: float, total: float, limit: float = 100.0) -> str:
    """Return a share as a position in percent."""
    return f"{min(100 * n / total, limit) if total else 0.0:.2f}"


def percent(n: float, total: float) -> str:
    """Format a share; 0% and 100% only for exactly none and all."""
    if not total:
        return "–"
    text = f"{100 * n / total:.1f}%"
    if text == "0.0%":
        return "<0.1%" if n else "0%"
    if text == "100.0%":
        return ">99.9%" if n < total else "100%"
    return text


def cut(text: str, limit: int) -> str:
    """Return the beginning of the text on one line, with "…" if it is cut."""
    line = " ".join(text[: 4 * limit].split())
    return line if len(line) <= limit else line[:limit].rstrip() + "…"


def fidelity_in_words(row: Mapping[str, Any]) -> str:
    """Format a conversation's measures, "text 98.5%, structure 100%"; never rounded up."""
    measures = (("text", row["text_fidelity"]), ("structure", row["fidelity"]))
    return ", ".join(
        f"{name} {math.floor(share * 1000) / 10:g}%"
        for name, share in measures
        if share is not None
    )
