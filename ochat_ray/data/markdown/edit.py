"""Modify a parsed tree in linear time, with only text that lxml can write."""

from __future__ import annotations

import re
from typing import Any

_REMOVED = "x-gone"
NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


def writable(text: str) -> str:
    """Return text without the control characters that lxml reads but does not write."""
    return NOT_XML.sub("", text)


def replace(element: Any, other: Any) -> None:
    """Replace an element by another one; the text after it stays."""
    parent, tail = element.getparent(), element.tail
    if parent is not None:
        other.tail = tail and writable(tail)
        parent.replace(element, other)


def mark_as_gone(element: Any) -> None:
    """Empty an element for `remove_marked`; the text after it stays.

    If elements were removed one by one, a long text would be copied once per element in it.
    """
    element.clear(keep_tail=True)
    element.tag = _REMOVED


def remove_marked(body: Any) -> None:
    """Remove all marked elements; each text around them is written once."""
    parents = dict.fromkeys(gone.getparent() for gone in body.iter(_REMOVED))
    for parent in parents:
        last, texts = None, [parent.text or ""]
        for child in list(parent):
            if child.tag == _REMOVED:
                texts.append(child.tail or "")
                parent.remove(child)
                continue
            if len(texts) > 1:
                set_text(parent, last, "".join(texts))
            last, texts = child, [child.tail or ""]
        if len(texts) > 1:
            set_text(parent, last, "".join(texts))


def set_text(element: Any, last: Any, text: str) -> None:
    """Set the text after an element's last child, or the element's own if it has no child."""
    if last is None:
        element.text = writable(text)
    else:
        last.tail = writable(text)
