"""Targets of visible links; helpers of `text.py`."""

from __future__ import annotations

import re
from html import unescape
from urllib.parse import unquote

from ochat_ray.data.visible.code import NOT_SHOWN, attributes_of, subtree_end
from ochat_ray.data.visible.formulas import TEX_ATTRIBUTES

_ABSOLUTE = re.compile(r"(?:https?|ftp|mailto|tel):", re.IGNORECASE)


def target_of_link(parts: list[str], at: int) -> list[str]:
    """Return the absolute URL of the link at a position; empty for an invisible link."""
    target = _target(attributes_of(parts[at + 1]).get("href", ""))
    shows = target and _shows_something(parts, at)
    return [target] if shows else []


def _shows_something(parts: list[str], at: int) -> bool:
    """Return whether a link contains text, or a picture that is more than an icon.

    A link ends where another begins.
    """
    i, end = at, len(parts)
    while i < end and (i == at or parts[i] not in ("a", "/a")):
        name = parts[i]
        if name == "img":
            given = attributes_of(parts[i + 1])
            text = given.get("alt", "").strip().lower()
            icon = text in ("favicon", "icon") or "favicon" in given.get("src", "").lower()
            if text and not icon:
                return True
        elif name in NOT_SHOWN:
            i = subtree_end(parts, i)
            if i >= end:
                break
        elif name == "input" or any(a in parts[i + 1] for a in TEX_ATTRIBUTES):
            return True
        if unescape(parts[i + 2]).strip():
            return True
        i += 3
    return False


def _target(href: str) -> str:
    """Return an absolute URL without percent encoding; "" for other targets.

    As in browsers, surrounding blanks and line breaks are removed (url.spec.whatwg.org, section
    4.4).
    """
    url = href.strip("".join(map(chr, range(0x21)))).translate({9: None, 10: None, 13: None})
    return unquote(url) if _ABSOLUTE.match(url) else ""
