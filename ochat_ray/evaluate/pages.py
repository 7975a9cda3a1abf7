"""Pages of evaluations, with their filters; see `report_template`.

A template gets colors and layout from `report_style` and from templates/evaluate.css.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from jinja2 import Environment

from ochat_ray.report_template import page_environment


def render(template: str, **values: Any) -> str:
    """Return the page of a template in `templates/`."""
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    return page_environment("ochat_ray.evaluate", number, share, interval, categories, scale)


def number(value: float | None, digits: int = 2) -> str:
    """Format a number; a dash for None."""
    return "–" if value is None else f"{value:,.{digits}f}"


def share(value: float | None) -> str:
    """Format a share in percent; a dash for None."""
    return "–" if value is None else f"{value:.0%}"


def categories(by_category: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of a plot by category."""
    found = []
    for name, one in by_category.items():
        count, scored = one["questions"], one.get("scored", one["questions"])
        of = f"{count}" if scored == count else f"{scored} of {count}"
        found.append({**one, "name": f"{name or 'none'} ({of})"})
    return found


def interval(one: Mapping[str, Any], digits: int = 2) -> str:
    """Format an interval; empty for a single question, which says nothing about others."""
    if one["score"] is None or one.get("questions") == 1:
        return ""
    return f"{one['low']:,.{digits}f} to {one['high']:,.{digits}f}"


class Scale:
    """Positions of values on the width of a plot, in percent."""

    def __init__(self, values: list[float]) -> None:
        low, high = min(values, default=0.0), max(values, default=1.0)
        span = (high - low) or 1.0
        self._low, self._span = low - 0.05 * span, 1.1 * span

    def left(self, value: float) -> str:
        """Return the position of a value."""
        return f"{100 * (value - self._low) / self._span:.2f}%"

    def width(self, low: float, high: float) -> str:
        """Return the width of an interval."""
        return f"{100 * (high - low) / self._span:.2f}%"


def scale(rows: list[dict[str, Any]], mark: float | None = None) -> Scale:
    """Return the scale for rows with score, low and high, and for a mark."""
    values = [r[name] for r in rows if r["score"] is not None for name in ("low", "high")]
    return Scale(values + ([] if mark is None else [mark]))
