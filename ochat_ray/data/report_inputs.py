"""Tables of the report on the inputs: answer formats, unknown keys, and content left out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from ochat_ray.data.statistics import Statistics, most_first

MAX_ROWS = 20


@dataclass(frozen=True, kw_only=True)
class Table:
    """Counts by name; `others` has the number and the sum of the names without a row."""

    title: str
    rows: list[tuple[str, int]]
    others: tuple[int, int] | None
    total: int
    note: str


def inputs_tables(statistics: Statistics) -> list[Table]:
    """Return tables of the answers by format, of unknown keys and of content left out."""
    answers, left_out, well = statistics.answers, statistics.left_out, statistics.read_well
    note = "HTML is converted; Markdown and plain text stay as they are."
    tables = [_table("Answers", answers, answers.total(), note)]
    if statistics.unknown_keys:
        note = (
            "Keys of no known meaning, which are not read, and how many of the "
            f"{well:,} conversations have each."
        )
        tables.append(_table("Unknown keys", statistics.unknown_keys, well, note))
    if left_out:
        note = "Of conversations that pass the rules."
        tables.append(_table("Left out", left_out, left_out.total(), note))
    return tables


def _table(title: str, counts: Counter[str], total: int, note: str) -> Table:
    ordered = list(most_first(counts).items())
    rest = ordered[MAX_ROWS:]
    others = (len(rest), sum(n for _, n in rest)) if rest else None
    return Table(title=title, rows=ordered[:MAX_ROWS], others=others, total=total, note=note)
