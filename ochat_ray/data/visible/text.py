"""Visible text of an HTML fragment, line by line, as in a browser.

It is used by the measure of the conversion (`fidelity.py`), so it shares nothing with the
converter: no parser, no helper, no list of elements. HTML is read as a flat sequence of tags and
text, following the tokenization rules of the HTML Standard (html.spec.whatwg.org, section 13.2.5),
in linear time.

The result is that of `innerText`, with these rules for ChatGPT's page: a formula is its TeX once, a
checkbox is `[x]` or `[ ]`, closed `<details>` are open, code is its lines without the bar above
them, and text only for screen readers is left out. An unknown element (`<vector>`) counts as text.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from html import unescape

from ochat_ray.data.visible.code import (
    BLOCK_NAMES,
    NOT_SHOWN,
    attributes_of,
    code_lines,
    is_beside_code,
    is_hidden,
    own_texts,
    subtree_end,
    without_counting_cells,
)
from ochat_ray.data.visible.formulas import LOST, TEX_ATTRIBUTES, glyphs, tex_in, tex_of_picture
from ochat_ray.data.visible.links import target_of_link

CODE = "\x1d"
"""Start of a line of code, in which white space is significant."""
FORMULA = "\x1b"
"""Delimiter on both sides of a formula's TeX."""
_LINE, _CODE_END = "\x1c", "\x1f"

_TAG = re.compile(
    r"""<(/?[a-zA-Z][^\s/>]*+)([^>=]*+(?:=\s*+(?:"[^"]*+(?:"|\Z)|'[^']*+(?:'|\Z)|)[^>=]*+)*+)(?:>|\Z)"""
)
_COMMENT = re.compile(
    r"<!--(?:-?>|.*?(?:--!?>|\Z))|<[!?][^>]*(?:>|\Z)|</(?![a-zA-Z])[^>]*(?:>|\Z)", re.DOTALL
)
_RAW = re.compile(
    r"<(script|style|textarea|title|xmp|iframe|noscript)\b([^>]*)(?:>|\Z)(.*?)(?:</\1\s*>|\Z)",
    re.DOTALL | re.IGNORECASE,
)
_RAW_NAMES = frozenset(("script", "style", "textarea", "title", "xmp", "iframe", "noscript"))
_NOT_TEXT = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f\ufdd0-\ufdef\ufffe\uffff]")
_BLANKS = re.compile(r"[ \t\n\f]{2,}|[\t\n\f]")
_BLANK_LINE = re.compile(r"\n[ \t]*\n\s*")
# Attributes that may change the meaning of an element.
_HINT = re.compile(
    r"hidden|checkbox|display\s*:\s*none|sr-only|gutter|lineno|"
    r"katex|math|MJX|data-(?:tex|latex|formula|katex|equation)|"
    r"cm-editor|cm-content|CodeMirror|monaco|view-lines|ace_",
    re.IGNORECASE,
)

_INLINE_NAMES = frozenset(
    "abbr acronym b bdi bdo big cite data del dfn em font i ins kbd label map mark meter "
    "nobr output picture progress q rb rp rt rtc ruby s samp slot small source span strike strong "
    "time track tt u var wbr area col colgroup base link meta param "
    "mi mn mo mtext ms mrow mspace semantics annotation".split()
)
_PLAIN_TAGS = frozenset(name for n in _INLINE_NAMES for name in (n, f"/{n}")) | {
    "/a",
    "/code",
    "/sup",
    "/sub",
}
_LINE_TAGS = frozenset(name for n in BLOCK_NAMES for name in (n, f"/{n}")) - {"pre", "/pre"}
_PARAGRAPHS = frozenset("p li h1 h2 h3 h4 h5 h6 td th dt dd caption summary figcaption".split())

_FORMULA_CLASSES = frozenset(
    "katex katex-display math math-inline math-display math-block MathJax MathJax_Display "
    "MathJax_SVG MathJax_SVG_Display MathJax_CHTML mwe-math-element".split()
)
_EDITOR_CLASSES = frozenset(
    "cm-editor CodeMirror monaco-editor ace_editor cm-content CodeMirror-code view-lines "
    "ace_text-layer".split()
)
_DISPLAY_CLASSES = frozenset(
    "katex-display math-display math-block MathJax_Display MathJax_SVG_Display".split()
)
_TEX_SCRIPT = re.compile(r"""\btype\s*=\s*["']?math/(?:tex|latex)([^"'>]*)""", re.IGNORECASE)
# Exponents and indices of digits, as Unicode characters.
_RAISED = str.maketrans("0123456789+-=()n", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿ")
_LOWERED = str.maketrans("0123456789+-=()", "₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎")


@dataclass(frozen=True, slots=True)
class Visible:
    """Visible text of an HTML fragment.

    `lines` are its lines, those of code prefixed by `CODE`. Between two `FORMULA`s is the index of
    a formula's TeX in `formulas`. `targets` are the absolute URLs of its links.
    """

    lines: list[str]
    formulas: list[str]
    targets: list[str]


def visible_text(html: str, *, ill_formed: bool = False) -> Visible:
    """Return the visible text of an HTML fragment.

    `ill_formed`: first remove end tags without a start tag, as a browser does; HTML serialized by a
    browser has none.
    """
    reader = _Reader()
    reader.read(html, ill_formed)
    shown = "".join(reader.out)
    if "&" in shown:
        shown = _with_references(shown)
    prose, *rest = shown.split(CODE)
    lines = _prose_lines(prose)
    for part in rest:
        code, _, prose = part.partition(_CODE_END)
        # Editors show spaces as no-break spaces.
        lines += [CODE + line for line in code.replace("\xa0", " ").split("\n")]
        lines += _prose_lines(prose)
    return Visible(lines, reader.formulas, reader.targets)


def _with_references(text: str) -> str:
    """Resolve the character references; for those of browser-serialized HTML in one pass."""
    text = text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", '"')
    ampersands = text.count("&")
    if ampersands == text.count("&amp;"):
        return text.replace("&amp;", "&") if ampersands else text
    return unescape(text)


@lru_cache(maxsize=2048)
def _is_telling(attributes: str) -> bool:
    return bool(_HINT.search(attributes))


def _prose_lines(prose: str) -> list[str]:
    lines = []
    for line in prose.split(_LINE):
        if text := line.strip():
            # A regular-expression search over all text would take longer than everything else.
            if "\n" in text or "  " in text or "\t" in text or "\f" in text:
                text = _BLANKS.sub(" ", text)
            lines.append(text)
    return lines


@dataclass(slots=True)
class _Reader:
    """Output of one pass over the tags: raw text, with marks for line breaks, code and formulas."""

    out: list[str] = field(default_factory=list)
    formulas: list[str] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)
    has_tex_scripts: bool = False

    def read(self, html: str, ill_formed: bool) -> None:
        if "\r" in html:
            html = html.replace("\r\n", "\n").replace("\r", "\n")
        html = _NOT_TEXT.sub("", html)
        if ill_formed or "<!" in html or "<?" in html:
            html = _COMMENT.sub("", html)
        parts = _TAG.split(html)
        names = parts[1::3]
        if (together := "".join(names)) != together.lower():
            parts[1::3] = names = [name.lower() for name in names]
        if not _RAW_NAMES.isdisjoint(names):
            parts = _TAG.split(_RAW.sub(self._raw, html))
            parts[1::3] = [name.lower() for name in parts[1::3]]
        if "td" in parts and "pre" in parts:
            parts = without_counting_cells(parts)
        if ill_formed:
            parts = _without_stray_ends(parts)
        self._read_parts(parts)

    def _raw(self, match: re.Match[str]) -> str:
        """Return a script's TeX as an element of our own; empty for other scripts."""
        name, attributes, content = match.groups()
        tex_type = _TEX_SCRIPT.search(attributes) if name.lower() == "script" else None
        if tex_type is None:
            is_formula = "math/" in attributes.lower()  # of another language
            return content if name.lower() == "xmp" else LOST * is_formula
        self.has_tex_scripts = True
        content = re.sub(r"^\s*<!\[CDATA\[|\]\]>\s*$", "", content)
        escaped = content.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        display = "display" in tex_type[1].lower()
        return f"<x-tex{' display' if display else ''}>{escaped}</x-tex>"

    def _read_parts(self, parts: list[str]) -> None:
        """Read `parts`: text, then per tag its name, its attributes, and the text after it."""
        out = self.out
        items, bare = 0, True
        self._text(parts[0], bare)
        at, end = 1, len(parts)
        while at < end:
            name, attributes, text = parts[at], parts[at + 1], parts[at + 2]
            if (
                attributes
                and _is_telling(attributes)
                and (after := self._special(parts, at, attributes_of(attributes)))
            ):
                at = after
                self._text(parts[at - 1], bare)
                continue
            if name in _PLAIN_TAGS:
                if bare and "\n" in text and name[0] == "/":
                    text = _BLANK_LINE.sub(_LINE, text)
                out.append(text)
            elif name in _LINE_TAGS:
                items += (name == "li") - (name == "/li" and items > 0)
                bare = items == 0 and name not in _PARAGRAPHS
                out.append(_LINE)
                if bare and "\n" in text:
                    text = _BLANK_LINE.sub(_LINE, text)
                out.append(text)
            else:
                at = self._other(parts, at)
                self._text(parts[at - 1], bare)
                continue
            at += 3

    def _text(self, text: str, bare: bool) -> None:
        """Append text; outside of paragraphs a blank line ends a paragraph."""
        if bare and "\n" in text:
            text = _BLANK_LINE.sub(_LINE, text)
        self.out.append(text)

    def _other(self, parts: list[str], at: int) -> int:
        """Read an element that is more than its text; return the position of the next tag."""
        name, out = parts[at], self.out
        if name == "br":
            out.append(_LINE)
        elif name == "pre" or (
            name == "code" and at + 3 < len(parts) and parts[at + 3] in BLOCK_NAMES
        ):
            return self._code(parts, at)
        elif name == "code":
            pass
        elif name == "a":
            # Markdown has no links in code.
            if "href" in parts[at + 1] and (at < 3 or parts[at - 3] != "code"):
                self.targets += target_of_link(parts, at)
        elif name in ("sup", "sub"):
            text, closing = parts[at + 2].strip(), parts[at + 3 : at + 4]
            table = _RAISED if name == "sup" else _LOWERED
            if closing == [f"/{name}"] and text and all(ord(c) in table for c in text):
                out.append(text.translate(table))
                return at + 6
        elif name == "input":
            given = attributes_of(parts[at + 1])
            if given.get("type", "").lower() == "checkbox":
                out.append("[x] " if "checked" in given else "[ ] ")
                if parts[at + 3 : at + 4] == ["p"] and not parts[at + 2].strip():
                    return at + 6
        elif name == "img":
            given = attributes_of(parts[at + 1])
            if tex := tex_of_picture(given):
                out.append(f"{FORMULA}{len(self.formulas)}{FORMULA}")
                self.formulas.append(tex)
            else:
                out.append(_text_of_image(given))
        elif name in ("math", "mjx-container", "x-tex"):
            return self._formula(parts, at, attributes_of(parts[at + 1]))
        elif name in NOT_SHOWN:
            return _after(parts, subtree_end(parts, at))
        elif name[0] != "/" and "-" not in name and ":" not in name:
            out.append(f"&lt;{name}&gt;")
        return at + 3

    def _code(self, parts: list[str], at: int) -> int:
        end = subtree_end(parts, at)
        before, code, after = code_lines(parts, at, end)
        self.out += [_LINE, before, CODE, code, _CODE_END, after, _LINE]
        return _after(parts, end)

    def _special(self, parts: list[str], at: int, given: dict[str, str]) -> int:
        """Read an element by its attributes as `_other` does; return 0 if they have no effect."""
        name, classes = parts[at], set(given.get("class", "").split())
        if name[0] == "/" or name in ("input", "br", "hr"):
            return 0
        if given.get("role") == "checkbox":
            self.out.append("[x] " if given.get("aria-checked") == "true" else "[ ] ")
            return _after(parts, subtree_end(parts, at))
        if is_hidden(given):
            return _after(parts, subtree_end(parts, at))
        if name in ("img", "pre", "math", "mjx-container"):
            return 0
        if name == "td" and is_beside_code(given):  # the line numbers of the code next to it
            end = subtree_end(parts, at)
            return _after(parts, end) if "pre" in parts[end : end + 30 : 3] else 0
        if "MathJax_Preview" in classes or "MJX_Assistive_MathML" in classes:
            return _after(parts, subtree_end(parts, at))
        if _EDITOR_CLASSES & classes:
            return self._code(parts, at)
        if _FORMULA_CLASSES & classes or any(a in given for a in TEX_ATTRIBUTES[:-1]):
            return self._formula(parts, at, given)
        return 0

    def _formula(self, parts: list[str], at: int, given: dict[str, str]) -> int:
        end = subtree_end(parts, at)
        name, classes = parts[at], set(given.get("class", "").split())
        found = tex_in(parts, at, end)
        display = bool(_DISPLAY_CLASSES & classes) or (
            given.get("display") in ("", "true", "block") or (name == "div" and "math" in classes)
        )
        is_own = bool(found) and any(given.get(a) for a in TEX_ATTRIBUTES)
        is_box = name not in ("math", "mjx-container", "x-tex") and not is_own
        is_box = is_box and not any("katex" in c or "MathJax" in c for c in classes)
        is_box = is_box and any(True for _ in own_texts(parts, at, end))
        if len(found) == 1 and not is_box:
            if not display:
                display = any("katex-display" in parts[i + 1] for i in range(at, end, 3))
            mark = f"{FORMULA}{len(self.formulas)}{FORMULA}"
            self.formulas.append(unescape(found[0]).strip())
            self.out.append(f"{_LINE}{mark}{_LINE}" if display else mark)
            return _after(parts, end)
        if not found and self.has_tex_scripts and any("MathJax" in c for c in classes):
            return _after(parts, end)
        if found and name in BLOCK_NAMES | {"span"}:  # a box around formulas
            self.out.append(_LINE if name in BLOCK_NAMES else "")
            self.out.append(parts[at + 2])
            inner = _Reader([], self.formulas, self.targets, self.has_tex_scripts)
            inner._read_parts(["", *parts[at + 3 : end]])
            self.out += [*inner.out, _LINE if name in BLOCK_NAMES else ""]
            return _after(parts, end)
        self.out.append(glyphs(parts, at, end))
        return _after(parts, end)


def _without_stray_ends(parts: list[str]) -> list[str]:
    """Return the parts without unmatched end tags; that of a paragraph acts as a line break."""
    kept = [parts[0]]
    open_names: list[str] = []
    counts: Counter[str] = Counter()
    for at in range(1, len(parts), 3):
        name = parts[at]
        if name[0] != "/":
            open_names.append(name)
            counts[name] += 1
        elif counts[name[1:]]:
            while open_names:
                opened = open_names.pop()
                counts[opened] -= 1
                if opened == name[1:]:
                    break
        elif name != "/p":
            kept[-1] += parts[at + 2]
            continue
        kept += parts[at : at + 3]
    return kept


def _after(parts: list[str], end: int) -> int:
    """Return the position of the tag after an element ending at `end`, whose tail is in between."""
    return min(end + 3, len(parts))


def _text_of_image(given: dict[str, str]) -> str:
    """Return the description of a picture that cannot be fetched."""
    source = given.get("src", "").strip().lower()
    if source and not source.startswith(("data:", "blob:", "file:", "javascript:", "vbscript:")):
        return ""
    return given.get("alt", "").replace("&", "&amp;")
