"""Normalize constructs that pages write in many ways: formulas, checkboxes, hidden elements, etc.

`normalize` modifies a parsed turn in place, so that the converter and the measure of its structure
handle only these forms: `CODE_BLOCK` around a code block's text, `FORMULA` and `FORMULA_BLOCK`
around a formula's TeX, and "[x] " for a checkbox.

Sources: the output of KaTeX 0.16, MathJax 2.7 and 3.2 and rehype-katex; gemini.google.com's
`data-math`; the task lists of GitHub's and GitLab's pages.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from lxml import etree

from ochat_ray.data.markdown.code import (
    BLOCK_TAGS,
    EDITOR_CLASSES,
    LINE_HINT,
    Code,
    code_of,
    is_beside_lines,
)
from ochat_ray.data.markdown.code_table import are_line_numbers
from ochat_ray.data.markdown.edit import (
    NOT_XML,
    mark_as_gone,
    remove_marked,
    replace,
    set_text,
    writable,
)

FORMULA, FORMULA_BLOCK = "x-formula", "x-formula-block"
"""Elements that hold TeX; a displayed formula has the attribute `display`."""

CODE_BLOCK = "x-code"
"""Element that holds a code block's text; `language` is an attribute."""

_TEX_ENCODINGS = ("application/x-tex", "application/x-latex", "text/x-tex", "tex", "latex")
_TEX_ATTRIBUTES = tuple(
    f"data-{name}" for name in ("math", "tex", "latex", "formula", "katex", "equation")
)
_CLASSES = frozenset(
    "katex katex-display math math-inline math-display math-block MathJax MathJax_Display "
    "MathJax_SVG MathJax_SVG_Display MathJax_CHTML mwe-math-element".split()
)
_DISPLAY = frozenset(
    "katex-display math-display math-block MathJax_Display MathJax_SVG_Display".split()
)
_COPIES = frozenset(("MathJax_Preview", "MJX_Assistive_MathML"))
"""Copies of a formula in MathJax 2: a preview before rendering, and MathML for screen readers."""
_TEX_CLASSES = frozenset(("latex", "tex"))
_TEX_PICTURE = re.compile(r"equation\?tex=|latex\.php\?|latex\.codecogs\.com|mwe-math-fallback")
_TEX_PICTURE_HINT = re.compile(r"tex|mwe-math", re.IGNORECASE)
_EDITOR = re.compile("cm-editor|cm-content|CodeMirror|monaco-editor|view-lines|ace_")
_MATH_TAGS = ("math", "mjx-container")
_MATH_NAMES = frozenset((*_MATH_TAGS, "script"))
_MATH_ATTRIBUTES = re.compile("math|katex|MathJax|MJX|data-(?:tex|latex|formula|katex|equation)")

_HIDING_STYLE = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)
_HIDING = re.compile(r"hidden|sr-only|screen-reader|[dD]isplay\s*:\s*none|HIDDEN")
_HIDING_CLASSES = frozenset(("sr-only", "visually-hidden", "screen-reader-text"))

_RAISED = str.maketrans("0123456789+-=()n", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿ")
_LOWERED = str.maketrans("0123456789+-=()", "₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎")


def normalize(body: Any, names: Collection[str], attributes: str) -> None:
    """Normalize a parsed turn in place.

    Args:
        body: The turn.
        names: Names of its elements.
        attributes: Source of all its attributes.
    """
    if _HIDING.search(attributes):
        _remove_hidden(body)
    if not _MATH_NAMES.isdisjoint(names) or _MATH_ATTRIBUTES.search(attributes):
        _mark_formulas(body)
    if "img" in names and _TEX_PICTURE_HINT.search(attributes):
        for image in list(body.iter("img")):
            if (tex := (image.get("alt") or "").strip()) and _is_picture_of_tex(image):
                replace(image, _formula(tex, display=False, block=False))
    if "pre" in names and "table" in names:
        _unwrap_numbered_code(body)
    if _EDITOR.search(attributes):
        for element in list(body.iter()):
            if not EDITOR_CLASSES.isdisjoint((element.get("class") or "").split()):
                _mark_code(element, may_have_lines=True)
    if "code" in names:
        for code in list(body.iter("code")):
            if len(code) and code[0].tag in BLOCK_TAGS:
                _mark_code(code, may_have_lines=True)
    if "pre" in names:
        may_have_lines = bool(LINE_HINT.search(attributes))
        for pre in list(body.iter("pre")):
            _mark_code(pre, may_have_lines)
    if "code" in names:
        _join_code(body)
    if "checkbox" in attributes:
        for box in list(body.iter()):
            _write_checkbox(box)
        remove_marked(body)
    if "img" in names:
        _remove_icons(body)
    if "sup" in names or "sub" in names:
        _write_indices(body)


# ---- hidden elements


def _remove_hidden(body: Any) -> None:
    for element in list(body.iter()):
        if element is not body and _is_hidden(element):
            mark_as_gone(element)
    remove_marked(body)


def _is_hidden(element: Any) -> bool:
    if element.tag == "input":
        return False
    hidden = element.get("hidden")
    return (
        (hidden is not None and hidden != "until-found")
        or bool(_HIDING_STYLE.search(element.get("style") or ""))
        or not _HIDING_CLASSES.isdisjoint((element.get("class") or "").split())
    )


# ---- code


def _mark_code(pre: Any, may_have_lines: bool) -> None:
    """Replace a `<pre>`, an editor's view or a `<code>` with blocks by one element.

    Elements with control characters, which lxml cannot write, are left unchanged.
    """
    if next(pre.iterancestors("pre", CODE_BLOCK), None) is not None or pre.getparent() is None:
        return
    code = code_of(pre, may_have_lines=may_have_lines)
    if not code.text.isprintable() and NOT_XML.search(code.text):
        return
    element = etree.Element(CODE_BLOCK, language=writable(code.language))
    element.text = code.text
    replace(pre, element)
    for text, offset in ((code.after, 1), (code.before, 0)):
        if text:
            paragraph = etree.Element("p")
            paragraph.text = writable(text)
            if offset:
                paragraph.tail, element.tail = writable(element.tail or ""), None
            parent = element.getparent()
            parent.insert(parent.index(element) + offset, paragraph)


def _unwrap_numbered_code(body: Any) -> None:
    """Replace a table that only adds line numbers to a `<pre>` by the `<pre>`."""
    for table in list(body.iter("table")):
        cells = [cell for cell in table.iter("td", "th") if not is_beside_lines(cell.get("class"))]
        if len(cells) == 2 and are_line_numbers("".join(cells[0].itertext()).split()):
            del cells[0]
        code = next(cells[0].iter("pre"), None) if len(cells) == 1 else None
        if code is not None and next(table.iterancestors("pre"), None) is None:
            replace(table, code)


def _join_code(body: Any) -> None:
    """Join adjacent inline code: in Markdown, the backticks would merge."""
    for code in list(body.iter("code")):
        following = code.getnext()
        if following is None or following.tag != "code" or code.tail:
            continue
        last = code[-1] if len(code) else None
        texts = [(code.text if last is None else last.tail) or ""]
        while following is not None and following.tag == "code" and not code.tail:
            texts.append(following.text or "")
            if children := list(following):
                set_text(code, last, "".join(texts))
                code.extend(children)
                last, texts = children[-1], [children[-1].tail or ""]
            code.tail, after = following.tail, following.getnext()
            following.getparent().remove(following)
            following = after
        set_text(code, last, "".join(texts))


def code_block(element: Any) -> Code:
    """Return the code block of a `CODE_BLOCK` or of a `<pre>`."""
    if element.tag == CODE_BLOCK:
        return Code(element.get("language"), element.text or "")
    return code_of(element)


# ---- formulas


def _mark_formulas(body: Any) -> None:
    scripts = [script for script in body.iter("script") if _is_tex_script(script)]
    for element in list(body.iter("span", "div")):
        classes = set((element.get("class") or "").split())
        # If the TeX is in a script, the rest of the formula is a copy of it.
        if classes & _COPIES or (scripts and any("MathJax" in name for name in classes)):
            mark_as_gone(element)
    remove_marked(body)
    for script in scripts:
        display = "display" in script.get("type").lower()
        tex = re.sub(r"^\s*<!\[CDATA\[|\]\]>\s*$", "", script.text or "")
        replace(script, _formula(tex, display=display, block=False))
    _mark_below(body)


def _is_tex_script(script: Any) -> bool:
    return (script.get("type") or "").strip().lower().startswith(("math/tex", "math/latex"))


def _mark_below(parent: Any) -> None:
    for element in list(parent):
        if not _is_formula(element):
            _mark_below(element)
            continue
        own = _tex_attribute(element)
        found = [own] if own else _tex_inside(element)
        if len(found) == 1 and (own or not _is_box(element)):
            classes = set((element.get("class") or "").split())
            block = element.tag in ("div", "p", "section", "figure")
            display = (
                bool(classes & _DISPLAY)
                or (block and "math" in classes)
                or element.get("display") in ("", "true", "block")
                or any("katex-display" in (e.get("class") or "") for e in element.iter("span"))
            )
            replace(element, _formula(found[0], display=display, block=block))
        elif found:
            _mark_below(element)
        else:
            glyphs = etree.Element("span")
            glyphs.text = writable(_glyphs(element))
            replace(element, glyphs)


def _is_formula(element: Any) -> bool:
    if element.tag in _MATH_TAGS:
        return True
    classes = element.get("class")
    if classes and not _CLASSES.isdisjoint(classes.split()):
        return element.tag not in ("pre", "code")
    return any(element.get(name) for name in _TEX_ATTRIBUTES)


def _is_picture_of_tex(image: Any) -> bool:
    """Return whether a picture was rendered from the TeX in its description."""
    classes = (image.get("class") or "").lower().split()
    source = image.get("src") or ""
    return not _TEX_CLASSES.isdisjoint(classes) or bool(_TEX_PICTURE.search(source))


def _tex_attribute(element: Any) -> str | None:
    return next((tex for n in _TEX_ATTRIBUTES if (tex := (element.get(n) or "").strip())), None)


def _tex_inside(element: Any) -> list[str]:
    """Return the TeX of each formula in an element, from annotations or else from attributes."""
    notes = [
        "".join(note.itertext())
        for note in element.iter("annotation")
        if (note.get("encoding") or "").lower() in _TEX_ENCODINGS
    ]
    notes += [inside.text or "" for inside in element.iter(FORMULA)]
    if notes:
        return notes
    given = (_tex_attribute(e) or (e.get("alttext") or "").strip() for e in element.iter())
    return [tex for tex in given if tex][:1]


def _is_box(element: Any) -> bool:
    """Return whether there is text next to the formula in an element around it."""
    classes = element.get("class") or ""
    if element.tag in _MATH_TAGS or "katex" in classes or "MathJax" in classes:
        return False
    own = [element.text, *(child.tail for child in element)]
    return any(text and text.strip() for text in own)


def _formula(tex: str, *, display: bool, block: bool) -> Any:
    element = etree.Element(FORMULA_BLOCK if block else FORMULA)
    element.text = writable(tex).strip()
    if display:
        element.set("display", "")
    return element


def _glyphs(element: Any) -> str:
    """Return the text of a formula without TeX, once: a second copy may serve screen readers."""
    spans = list(element.iter("span"))
    seen = [e for e in spans if "katex-html" in (e.get("class") or "").split()]
    if not seen:
        seen = [e for e in element.iter("math") if e.getparent() is not None]
    shown = seen if seen else [element]
    return "".join("".join("".join(e.itertext()).split()) for e in shown)


def tex_of(element: Any) -> tuple[str, bool] | None:
    """Return the TeX of a formula and whether it is displayed; None for other elements."""
    if element.tag not in (FORMULA, FORMULA_BLOCK):
        return None
    return element.text or "", element.get("display") is not None


# ---- pictures and special notations


def _remove_icons(body: Any) -> None:
    """Remove site icons next to citations, which add nothing to the text."""
    for image in list(body.iter("img")):
        source, alt = (image.get("src") or "").lower(), (image.get("alt") or "").strip().lower()
        names = (image.get("class") or "").lower()
        sizes = [re.sub(r"px$", "", image.get(side) or "") for side in ("width", "height")]
        is_small = all(size.isdecimal() and int(size[:6]) <= 32 for size in sizes)
        named = "favicon" in source or "favicon" in names or alt in ("favicon", "icon")
        # An empty description marks a picture as decorative.
        in_link = image.get("alt") == "" and _text_of_link_around(image)
        if named or (is_small and not alt) or in_link:
            if _follows_blank(image):
                image.tail = writable((image.tail or "").lstrip())
            mark_as_gone(image)
    remove_marked(body)


def _text_of_link_around(image: Any) -> bool:
    link = next(image.iterancestors("a"), None)
    return link is not None and any(text.strip() for text in link.itertext())


def _follows_blank(element: Any) -> bool:
    before = element.getprevious()
    text = element.getparent().text if before is None else before.tail
    return bool(text) and text[-1:].isspace()


def _write_checkbox(box: Any) -> None:
    if box.tag == "input" and (box.get("type") or "").lower() == "checkbox":
        is_checked = box.get("checked") is not None
    elif box.get("role") == "checkbox" and box.tag != "input":
        is_checked = box.get("aria-checked") == "true"
    else:
        return
    mark = "[x] " if is_checked else "[ ] "
    following = box.getnext()
    if following is not None and following.tag == "p" and not (box.tail or "").strip():
        following.text = mark + writable((following.text or "").lstrip())
    else:
        box.tail = mark + writable((box.tail or "").lstrip())
    mark_as_gone(box)


def _write_indices(body: Any) -> None:
    """Write exponents and indices of digits with the Unicode characters for them."""
    for tag, table in (("sup", _RAISED), ("sub", _LOWERED)):
        for element in body.iter(tag):
            text = (element.text or "").strip()
            if text and len(element) == 0 and all(ord(c) in table for c in text):
                element.text = text.translate(table)
