"""TeX of a formula, or its visible text without TeX; helpers of `text.py`."""

from __future__ import annotations

import re

from ochat_ray.data.visible.code import NOT_SHOWN, attributes_of, subtree_end

LOST = "\x1a"
"""Mark for structure that a formula's text does not show, and that no Markdown can preserve."""
_TEX_ENCODINGS = frozenset(
    ("application/x-tex", "application/x-latex", "text/x-tex", "tex", "latex")
)
TEX_ATTRIBUTES = (
    *("data-math", "data-tex", "data-latex", "data-formula", "data-katex", "data-equation"),
    "alttext",
)
# Not shown by a formula's text alone: fractions, exponents, roots.
_STRUCTURE_NAMES = frozenset(
    "mfrac msup msub msubsup msqrt mroot munder mover munderover mtable mmultiscripts".split()
)
_TEX_SOURCE = re.compile(r"equation\?tex=|latex\.php\?|latex\.codecogs\.com|mwe-math-fallback")
_STRUCTURE_CLASSES = re.compile(r"\b(?:mfrac|msupsub|vlist|sqrt|mtable)\b")


def tex_in(parts: list[str], at: int, end: int) -> list[str]:
    """Return the TeX of each formula in an element, or an empty list."""
    found: list[str] = []
    attribute: str | None = None
    for i in range(at, end, 3):
        name, raw = parts[i], parts[i + 1]
        if name == "x-tex":
            found.append(parts[i + 2])
        elif name == "annotation" and raw:
            if attributes_of(raw).get("encoding", "").lower() in _TEX_ENCODINGS:
                found.append(parts[i + 2])
        elif raw and attribute is None and ("data-" in raw or "alttext" in raw):
            given = attributes_of(raw)
            values = (given[a] for a in TEX_ATTRIBUTES if given.get(a, "").strip())
            attribute = next(values, None)
    if found or attribute is None:
        return found
    return [attribute.replace("&", "&amp;")]


def tex_of_picture(given: dict[str, str]) -> str:
    """Return the TeX in the description or an attribute of a formula's picture."""
    found = next((given[name] for name in TEX_ATTRIBUTES if given.get(name, "").strip()), "")
    classes = given.get("class", "").lower().split()
    drawn = "latex" in classes or "tex" in classes
    if not found and (drawn or _TEX_SOURCE.search(given.get("src", ""))):
        found = given.get("alt", "")
    return found.strip()


def glyphs(parts: list[str], at: int, end: int) -> str:
    """Return the text of a formula without TeX, with a mark if the text is incomplete."""
    inside = range(at, end, 3)
    names = {parts[i] for i in inside}
    raw = " ".join(parts[i + 1] for i in inside)
    rendered = "katex-html" in raw
    texts: list[str] = []
    i = at
    while i < end:
        name, given = parts[i], parts[i + 1]
        skip = (
            (rendered and "katex-mathml" in given)
            or (name == "mjx-math" and "math" in names)
            or name in NOT_SHOWN
        )
        if skip:
            i = subtree_end(parts, i) if i > at else i
            if i >= end:
                break
        texts.append(parts[i + 2])
        i += 3
    text = "".join("".join(texts).split())
    lost = bool(names & _STRUCTURE_NAMES or _STRUCTURE_CLASSES.search(raw) or not text)
    return text + LOST * lost
