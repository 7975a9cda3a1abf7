"""Tables that hold a listing: columns of line numbers are no code, and a tab is between cells."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

TABLE_PARTS = frozenset("table thead tbody tfoot tr".split())
"""Elements in which white space shows nothing."""

CELLS = frozenset(("td", "th"))
_MAX_NUMBER_COLUMNS = 2
"""A listing of changes has the numbers of the lines before and after."""


def number_cells(element: Any) -> set[Any]:
    """The cells of line numbers in an element's tables: leading columns of consecutive numbers."""
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
    """Return whether texts count lines; a line may have no number, as a wrapped one."""
    given = [text for text in texts if text]
    if not all(text.isascii() and text.isdecimal() and len(text) < 8 for text in given):
        return False
    if len(texts) == 1:
        return given in ([], ["1"])
    return all(int(b) == int(a) + 1 for a, b in pairwise(given))
