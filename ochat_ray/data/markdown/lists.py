"""Items of a list, including content that pages put into a list outside of its items."""

from __future__ import annotations

from typing import Any

from lxml import etree

from ochat_ray.data.markdown.edit import writable
from ochat_ray.data.markdown.tree import CHROME


def items_of(element: Any) -> list[Any]:
    """Return the items of a list, after moving all content between them into items, in place.

    A list directly in a list belongs to the item before it; text and other elements become items.
    """
    if element.text and not element.text.isspace():
        first = _item(element.text)
        element.text = None
        element.insert(0, first)
    items: list[Any] = []
    for child in list(element):
        text = child.tail
        if text and not text.isspace():
            child.tail = None
            item = _item(text)
            child.addnext(item)
        else:
            item = None
        if child.tag == "li":
            items.append(child)
        elif child.tag in ("ul", "ol") and items:
            items[-1].append(child)
        elif child.tag not in CHROME and (len(child) or (child.text or "").strip()):
            own = etree.Element("li")
            element.replace(child, own)
            own.append(child)
            items.append(own)
        if item is not None:
            items.append(item)
    return items


def _item(text: str) -> Any:
    item = etree.Element("li")
    item.text = writable(text)
    return item
