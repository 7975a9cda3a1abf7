"""Remove what browser extensions of 2023 added to a turn: the pager and the counter.

The pager, "2 / 3", shows which of several answers is displayed; an old version of ShareGPT's
extension copied it to the start of the turn. The counter, "Copy12 chars / 34 words", is another
extension's bar below the text. Both are only removed at places where an extension put them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ochat_ray.data.pager import PAGER_TEXT, is_pager, without_pager

PAGER, COUNTER = "pager", "counter"
HTML_NOISE = (PAGER, COUNTER)
"""Names of the noise that can be removed from an answer in HTML."""

_PAGER_IN_HTML = re.compile(r"(?:\s|<[^<>]{0,2000}>)*(\d{1,2}) / (\d{1,2})(?P<markup>\s*<)?")
_COUNTER = re.compile(r"Copy\s?\d+ chars / \d+ words\s*$")
# HTML may contain these and lxml reads them, but it does not write them.
_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
# People and models write in paragraphs; extensions write next to them.
_BESIDE = frozenset({"body", "div", "span"})


@dataclass(frozen=True, slots=True)
class Noise:
    """Text that was removed from a turn; "" if there was none."""

    pager: str = ""
    counters: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """Names of the rules that removed something."""
        return [COUNTER] * bool(self.counters) + [PAGER] * bool(self.pager)

    @property
    def texts(self) -> tuple[str, ...]:
        """All removed texts."""
        return (self.pager, *self.counters)


def strip_noise(root: Any, html: str, names: Collection[str] = HTML_NOISE) -> Noise:
    """Remove pager and counter, if named, from a parsed turn, and return them."""
    has_counter = COUNTER in names and "chars / " in html
    counters = _strip_counter(root) if has_counter else []
    pager = _strip_pager(root) if PAGER in names and _PAGER_IN_HTML.match(html) else ""
    return Noise(pager, tuple(counters))


def has_pager(html: str) -> bool:
    """Return whether HTML begins with a pager followed by markup."""
    match = _PAGER_IN_HTML.match(html)
    return match is not None and match["markup"] is not None and is_pager(match)


def _strip_pager(root: Any) -> str:
    element = next((e for e in root.iter() if (e.text or "").strip()), None)
    tail = next((e for e in root.iter() if (e.tail or "").strip()), None)
    # Text directly in the page comes first, or after a button of the pager.
    for candidate, kind in ((element, "text"), (tail, "tail")):
        if candidate is None:
            continue
        holder = candidate if kind == "text" else candidate.getparent()
        if holder is None or not _is_beside(holder):
            continue
        text = getattr(candidate, kind)
        match = PAGER_TEXT.match(text)
        if match is None or not is_pager(match):
            continue
        rest = text[match.end() :]
        if not rest.strip() and _is_all_there_is(root, text):
            return ""
        if not rest.strip() or without_pager(text) != text:
            _set(candidate, kind, rest)
            return match.group().strip()
    return ""


def _is_all_there_is(root: Any, text: str) -> bool:
    return "".join(root.itertext()).strip() == text.strip()


def _strip_counter(root: Any) -> list[str]:
    found = []
    for element in [*root.iter("div", "span")]:
        whole = "".join(islice(element.itertext(), 8)).strip()  # the counter has two
        if _is_beside(element) and _COUNTER.fullmatch(whole):
            found.append("".join(element.xpath(".//text()[not(ancestor::button)]")).strip())
            element.clear(keep_tail=True)
    for holder, kind, text in _texts_from_the_end(root):
        if not text.strip():
            continue
        match = _COUNTER.search(text)
        parent = holder if kind == "text" else holder.getparent()
        # In a paragraph it must directly follow a word: nobody writes "fine.Copy12 chars".
        if match and (
            (match.start() and not text[match.start() - 1].isspace() and parent.tag != "code")
            or (not text[: match.start()].strip() and _is_beside(parent))
        ):
            _set(holder, kind, text[: match.start()])
            found.append(match.group().strip())
        break
    return found


def _set(element: Any, kind: str, text: str) -> None:
    setattr(element, kind, _NOT_XML.sub("", text))


def _texts_from_the_end(element: Any) -> Iterator[tuple[Any, str, str]]:
    for child in reversed(element):
        yield child, "tail", child.tail or ""
        yield from _texts_from_the_end(child)
    yield element, "text", element.text or ""


def _is_beside(element: Any) -> bool:
    """Return whether the element and all its ancestors are the page's own boxes."""
    return element.tag in _BESIDE and all(
        e.tag in _BESIDE | {"html"} for e in element.iterancestors()
    )
