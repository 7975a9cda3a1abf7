"""Report section on the inputs: answer formats, unknown keys, and content left out."""

from __future__ import annotations

from collections import Counter
from html import escape

from ochat_ray.data.report_html import bar, cut, percent, section
from ochat_ray.data.statistics import Statistics, most_first

MAX_ROWS = 20


def inputs_section(statistics: Statistics) -> str:
    """Return tables of the answers by format, of unknown keys and of content left out."""
    answers = statistics.answers
    body = _table("Answers", answers, answers.total())
    body += "<p class=soft>HTML is converted; Markdown and plain text stay as they are.</p>"
    if statistics.unknown_keys:
        body += _table("Unknown keys", statistics.unknown_keys, statistics.read_well)
        body += (
            "<p class=soft>Keys of no known meaning, which are not read, and how many of the "
            f"{statistics.read_well:,} conversations have each.</p>"
        )
    if statistics.left_out:
        body += _table("Left out", statistics.left_out, statistics.left_out.total())
        body += "<p class=soft>Of conversations that pass the rules.</p>"
    return section("inputs", "What the inputs hold", body)


def _table(title: str, counts: Counter[str], total: int) -> str:
    ordered = list(most_first(counts).items())
    rows = "".join(
        f"<tr><td>{cut(name, 120)}<td class=n>{n:,}<td class=n>{percent(n, total)}"
        f"<td class=bar>{bar(n, total)}"
        for name, n in ordered[:MAX_ROWS]
    )
    if rest := sum(n for _, n in ordered[MAX_ROWS:]):
        names = len(ordered) - MAX_ROWS
        rows += f"<tr><td>{names:,} others<td class=n>{rest:,}<td><td>"
    return f"<table><tr><th>{escape(title)}<th><th><th>{rows}</table>"
