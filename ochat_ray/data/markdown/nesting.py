"""Nested elements that libxml2 closes and a browser does not, such as a table in a `<pre>`.

libxml2 (htmlparser.c, `htmlStartCloseIndex`) follows HTML 4: a `<table>` ends a `<pre>`, and a
`<p>` ends a `<b>` or a heading. Its error for an end tag without an element indicates that this may
have happened. Such inner elements are then renamed to names unknown to libxml2, and parsed again.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection
from typing import Any

_TABLE = frozenset("table caption colgroup thead tbody tfoot tr td th".split())
_HEADING = _TABLE | frozenset("fieldset form li p h1 h2 h3 h4 h5 h6".split())
_LIST = frozenset("dd dl dt form li ul".split())
_CLOSED_BY = {
    "pre": _TABLE | _LIST | {"fieldset"},
    "a": _TABLE | {"fieldset"},
    "ul": frozenset("address form menu pre".split()),
    "ol": frozenset(("form",)),
    "dl": frozenset(("form", "li")),
    "dt": frozenset(("dl",)),
    "legend": frozenset(("fieldset",)),
    "address": _LIST,
    "menu": frozenset("dd dl dt form ul".split()),
    **dict.fromkeys("h1 h2 h3 h4 h5 h6".split(), _HEADING),
    **dict.fromkeys("b i font".split(), frozenset(("center", "p"))),
    **dict.fromkeys("s small strike tt u big".split(), frozenset(("p",))),
}
"""Elements, and the start tags at which libxml2 closes each."""

_INNER = frozenset().union(*_CLOSED_BY.values())
_ENDED_BY = {
    **dict.fromkeys(("td", "th"), frozenset(("td", "th"))),
    **dict.fromkeys("tr thead tbody tfoot".split(), frozenset("td th tr".split())),
    **dict.fromkeys(("dd", "dt"), frozenset(("dd", "dt"))),
    **{name: frozenset((name,)) for name in ("li", "p")},
}
"""Elements, and the elements that each closes implicitly."""
_PREFIX = "x-within-"
_UNEXPECTED_END = "Unexpected end tag : "
# A tag's slash and name; the attributes are matched so that nothing in them is taken for a tag.
_TAG = re.compile(
    r"""<(/?+)([a-zA-Z][^\s/>]*+)(?=([^>=]*+(?:=\s*+(?:"[^"]*+(?:"|\Z)|'[^']*+(?:'|\Z)|)[^>=]*+)*+))\3"""
)


def may_have_closed_early(errors: Collection[Any]) -> bool:
    """Return whether libxml2's errors indicate that it may have closed an element too early."""
    return any(
        error.message.startswith(_UNEXPECTED_END)
        and error.message.removeprefix(_UNEXPECTED_END) in _CLOSED_BY
        for error in errors
    )


def with_unknown_names(html: str) -> str:
    """Return HTML in which elements that would close another one in libxml2 are renamed."""
    names = _Names()
    return _TAG.sub(names.rename, html)


class _Names:
    """Renames tags in document order, and writes end tags that may have been omitted.

    libxml2 does not know where elements with unknown names end.
    """

    def __init__(self) -> None:
        self._open: list[tuple[str, bool]] = []
        self._counts: Counter[str] = Counter()

    def rename(self, match: re.Match[str]) -> str:
        """Return the beginning of a tag as it should be written."""
        name = match[2].lower()
        if name not in _CLOSED_BY and name not in _INNER:
            return match.group()
        if match[1]:
            is_renamed = self._end(name)
            return f"</{_PREFIX}{name}{match[3]}" if is_renamed else match.group()
        ends = []
        while self._open and self._open[-1][1] and self._open[-1][0] in _ENDED_BY.get(name, ()):
            ends.append(f"</{_PREFIX}{self._open[-1][0]}>")
            self._pop()
        is_renamed = any(
            count and name in _CLOSED_BY.get(o, ()) for o, count in self._counts.items()
        )
        self._open.append((name, is_renamed))
        self._counts[name] += 1
        return "".join(ends) + (f"<{_PREFIX}{name}{match[3]}" if is_renamed else match.group())

    def _end(self, name: str) -> bool:
        """End an element with everything in it; return whether it was renamed."""
        while self._counts[name]:
            ended, is_renamed = self._pop()
            if ended == name:
                return is_renamed
        return False

    def _pop(self) -> tuple[str, bool]:
        name, is_renamed = self._open.pop()
        self._counts[name] -= 1
        return name, is_renamed


def restore_names(body: Any) -> None:
    """Restore the original names of the elements."""
    for element in body.iter():
        if element.tag.startswith(_PREFIX):
            element.tag = element.tag.removeprefix(_PREFIX)
