"""Code listings in tables: columns of line numbers are not code, and cells are tab-separated."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

TABLE_PARTS = frozenset("table thead tbody tfoot tr".split())
"""Elements in which white space is not visible."""

CELLS = frozenset(("td", "th"))
_MAX_NUMBER_COLUMNS = 2
"""Maximum number columns; a diff has line numbers before and after the change."""


def number_cells(element: Any) -> set[Any]:
    """Return an element's line-number cells: leading table columns of consecutive numbers."""
    found: set[Any] = set()
    for table in element.iter("table"):
        if next(table.iterdescendants("table"), None) is not None:
            continue
        rows = [[cell for cell in row if cell.tag in CELLS] for row in table.iter("tr")]
        rows = [row for row in rows if row]
        for column in range(_MAX_NUMBER_COLUMNS):
            if not rows or any(len(row) <= column + 1 for row in rows):
                break
            cells = [row[column] for row in rows]
            if not are_line_numbers(["".join(cell.itertext()).strip() for cell in cells]):
                break
            found.update(cells)
    return found


def are_line_numbers(texts: Sequence[str]) -> bool:
    """Return whether texts are consecutive line numbers; some may be empty, for wrapped lines."""
    given = [text for text in texts if text]
    if not all(text.isascii() and text.isdecimal() and len(text) < 8 for text in given):
        return False
    if len(texts) == 1:
        return given in ([], ["1"])
    return all(int(b) == int(a) + 1 for a, b in pairwise(given))
