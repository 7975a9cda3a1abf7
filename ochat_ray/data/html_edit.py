"""Changes to a parsed tree in linear time, with only text that lxml can write."""

from __future__ import annotations

import re
from typing import Any

_GONE = "x-gone"
NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


def writable(text: str) -> str:
    """Return text without the control characters that lxml reads, but does not write."""
    return NOT_XML.sub("", text)


def replace(element: Any, other: Any) -> None:
    """Put another element in an element's place; the text behind it stays."""
    parent, tail = element.getparent(), element.tail
    if parent is not None:
        other.tail = tail and writable(tail)
        parent.replace(element, other)


def mark_as_gone(element: Any) -> None:
    """Empty an element that `remove_marked` is to remove; the text behind it stays.

    Removed one by one, a long text would be copied as often as there are elements in it.
    """
    element.clear(keep_tail=True)
    element.tag = _GONE


def remove_marked(body: Any) -> None:
    """Remove the elements that are marked as gone; each text around them is written once."""
    parents = dict.fromkeys(gone.getparent() for gone in body.iter(_GONE))
    for parent in parents:
        last, texts = None, [parent.text or ""]
        for child in list(parent):
            if child.tag == _GONE:
                texts.append(child.tail or "")
                parent.remove(child)
                continue
            if len(texts) > 1:
                set_text(parent, last, "".join(texts))
            last, texts = child, [child.tail or ""]
        if len(texts) > 1:
            set_text(parent, last, "".join(texts))


def set_text(element: Any, last: Any, text: str) -> None:
    """Set the text behind an element's last child, or its own where it has none."""
    if last is None:
        element.text = writable(text)
    else:
        last.tail = writable(text)
