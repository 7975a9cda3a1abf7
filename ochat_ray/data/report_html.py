"""HTML components of the report: numbers, bars, histograms.

Text arguments are plain text and escaped here, so that a caller cannot forget it and insert a
page's own markup into the report.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any


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


def histogram(
    bars: Sequence[Bar],
    *,
    unit: str,
    ticks: Sequence[tuple[float, str]],
    mark: tuple[int, str] | None = None,
) -> str:
    """Return a histogram with labels below it, at shares of the width.

    The chart is HTML, not SVG, so its text keeps its size on a phone.

    Args:
        bars: The bars, from left to right.
        unit: Unit of the values, for labels.
        ticks: Positions (0 to 1) and texts of the labels.
        mark: Index of the bar before which a labelled line is drawn; bars from there on are
            coloured.
    """
    highest = max((bar.count for bar in bars), default=0) or 1
    limit = mark[0] if mark else len(bars)
    drawn = "".join(
        f'<i{" class=over" if i >= limit else ""} style="height:{100 * bar.count / highest:.4g}%" '
        f'title="{bar.label} {escape(unit)}: {bar.count:,}"></i>'
        for i, bar in enumerate(bars)
    )
    if mark:
        left = 100 * limit / len(bars)
        # The label is on the side that has room.
        side = f"right:{100 - left:.2f}%" if left > 50 else f"left:{left:.2f}%"
        drawn += f'<u style="left:{left:.2f}%"></u><span style="{side}">{escape(mark[1])}</span>'
    labels = "".join(
        f'<span style="left:{100 * x:.2f}%{_shift(x)}">{escape(text)}</span>' for x, text in ticks
    )
    return (
        f'<figure class=chart role=img aria-label="histogram of {escape(unit)}">'
        f"<div>up to {highest:,} conversations per bar</div>"
        f"<div class=plot>{drawn}</div><div class=axis>{labels}</div></figure>"
    )


def _shift(x: float) -> str:
    """Return a style that keeps the first and the last label within the chart."""
    if x < 0.02:
        return ";transform:none"
    return ";transform:translateX(-100%)" if x > 0.98 else ""


def bar(n: float, total: float, *, start: float = 0.0, drop: bool = False) -> str:
    """Return a bar for the share n of total, starting at the share `start` of total."""
    share, left = (100 * n / total, 100 * start / total) if total else (0.0, 0.0)
    kind = " class=drop" if drop else ""
    return f'<i{kind} style="width:{share:.2f}%;margin-left:{min(left, 99.5):.2f}%"></i>'


def percent(n: float, total: float) -> str:
    """Format a share, escaped; 0% and 100% only for exactly none and all."""
    if not total:
        return "–"
    text = f"{100 * n / total:.1f}%"
    if text == "0.0%":
        return "&lt;0.1%" if n else "0%"
    if text == "100.0%":
        return "&gt;99.9%" if n < total else "100%"
    return text


def cut(text: str, limit: int) -> str:
    """Return the beginning of the text on one line, escaped, with "…" if it is cut."""
    line = " ".join(text[: 4 * limit].split())
    return escape(line if len(line) <= limit else line[:limit].rstrip() + "…")


def fidelity_in_words(row: Mapping[str, Any]) -> str:
    """Format a conversation's measures, "text 98.5%, structure 100%"; never rounded up."""
    measures = (("text", row["text_fidelity"]), ("structure", row["fidelity"]))
    return ", ".join(
        f"{name} {math.floor(share * 1000) / 10:g}%"
        for name, share in measures
        if share is not None
    )


def section(name: str, title: str, body: str, *, wide: bool = False) -> str:
    """Return a section with a linkable heading; `body` is HTML."""
    heading = f'<h2 id="{escape(name)}">{escape(title)}</h2>'
    return f"<section{' class=wide' if wide else ''}>{heading}{body}</section>"
