"""Write the inline content of a turn's HTML, with sentinels for `escape.finish`."""

from __future__ import annotations

import re
from collections.abc import Callable

from ochat_ray.data.markdown import escape as text_of
from ochat_ray.data.markdown.forms import CODE_BLOCK, code_block, tex_of
from ochat_ray.data.markdown.tree import CHROME, EDGED, Element

Pieces = list[str]
"""Finished Markdown, in the order of its OPAQUE marks in the text."""

MATH_MARK = "/\U0001d453/"
"""Replacement for a formula in `Converted.skeleton`: punctuation at both ends, like its
delimiters."""

_EDGES = f" \n\t{text_of.BREAK}{text_of.EDGE}"
_EMAIL = re.compile(
    r"[A-Za-z0-9.+_-]+@[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
    r"(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*"
)
_C0_AND_SPACE = "".join(map(chr, range(0x21)))
_MATH_START, _MATH_END = "\ufde0", "\ufde1"
_MATH = re.compile(f"{_MATH_START}.*?{_MATH_END}", re.DOTALL)


def without_marks(text: str) -> str:
    """Return finished Markdown with its formulas."""
    return text.replace(_MATH_START, "").replace(_MATH_END, "") if _MATH_START in text else text


def skeleton(text: str) -> str:
    """Return finished Markdown with `MATH_MARK` for every formula, for CommonMark renderers."""
    return _MATH.sub(MATH_MARK, text) if _MATH_START in text else text


def is_inline(tag: str) -> bool:
    """Return whether an element with this tag has only inline content."""
    return tag in _INLINE


def inline_of(element: Element, pieces: Pieces) -> str:
    """Return an element's content with sentinels; append finished parts of it to `pieces`."""
    parts = [text_of.literal(element.text)] if element.text else []
    for child in element:
        parts.append(inline_element(child, pieces))
        if child.tail:
            parts.append(text_of.literal(child.tail))
    return "".join(parts)


def inline_element(element: Element, pieces: Pieces) -> str:
    """Return an inline element with its own markup; see `inline_of`."""
    tag = element.tag
    if write := _INLINE.get(tag):
        return write(element, pieces)
    if tag in CHROME:
        return ""
    if tex := tex_of(element):
        return _opaque(formula(*tex), pieces)
    if tag in (CODE_BLOCK, "pre"):
        return _opaque(_code_span(code_block(element).text), pieces)
    inline = inline_of(element, pieces)
    # A block in a place that allows only inline content, such as a paragraph in a cell.
    return f"{text_of.EDGE}{inline}{text_of.EDGE}" if tag in EDGED and inline else inline


def _opaque(piece: str, pieces: Pieces) -> str:
    pieces.append(piece)
    return text_of.OPAQUE


def _code(element: Element, pieces: Pieces) -> str:
    lines = split_at_breaks(element)
    spans = [_opaque(_code_span(line), pieces) if line else "" for line in lines]
    return text_of.BREAK.join(spans)


def split_at_breaks(code: Element) -> list[str]:
    """Return the lines of inline code, which in Markdown cannot contain a line break."""
    if next(code.iter("br"), None) is None:
        return ["".join(code.itertext())]
    lines = [""]
    _add_lines(code, lines)
    return lines


def _add_lines(element: Element, lines: list[str]) -> None:
    lines[-1] += element.text or ""
    for child in element:
        if child.tag == "br":
            lines.append("")
        else:
            _add_lines(child, lines)
        lines[-1] += child.tail or ""


def _code_span(text: str) -> str:
    text = text.replace("\n", " ")
    if not text.strip(" "):
        return f"`{text or ' '}`"
    lengths = {len(run) for run in re.findall("`+", text)}
    mark = "`" * next(n for n in range(1, len(lengths) + 2) if n not in lengths)
    # One space at both ends is removed; needed if the code itself has a backtick or space there.
    padded = text[0] == "`" or text[-1] == "`" or (text[0] == " " and text[-1] == " ")
    return f"{mark} {text} {mark}" if padded else f"{mark}{text}{mark}"


def _emphasis(opener: str, closer: str) -> Callable[[Element, Pieces], str]:
    def write(element: Element, pieces: Pieces) -> str:
        inline = inline_of(element, pieces)
        # Delimiters must touch the emphasized text: white space goes outside.
        core = inline.strip(_EDGES).strip()
        if not core:
            return inline
        start = inline.index(core)
        return inline[:start] + opener + core + closer + inline[start + len(core) :]

    return write


def _link(element: Element, pieces: Pieces) -> str:
    href = url_of(element.get("href"))
    inside: Pieces = []
    inline = inline_of(element, inside)
    if not _is_safe(href) or any(piece.startswith(("](", "<")) for piece in inside):
        pieces += inside
        return inline
    label = text_of.plain(inline)
    if not inside and not label.strip():  # an anchor, or a button that is removed
        return inline
    if (
        not inside
        and label == href
        and re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]{1,31}:[^\s<>%\\]*", href)
    ):
        return _opaque(f"<{href}>", pieces)
    if not inside and href == f"mailto:{label}" and _EMAIL.fullmatch(label):
        return _opaque(f"<{label}>", pieces)
    for bracket in (text_of.OPEN_BRACKET, text_of.CLOSE_BRACKET):
        inline = inline.replace(bracket, "\\" + text_of.plain(bracket))
    pieces += inside
    core = inline.strip(_EDGES)
    before, _, after = inline.partition(core) if core else (inline, "", "")
    target = _opaque(f"]({_target(href, element.get('title'))})", pieces)
    return f"{before}[{core}{target}{after}"


def _image(element: Element, pieces: Pieces) -> str:
    source = url_of(element.get("src"))
    alt = re.sub(r"\s+", " ", element.get("alt") or "").strip()
    if not source or not _is_safe(source):
        return text_of.literal(alt)
    escaped = text_of.finish(text_of.literal(alt), [], one_line=True)
    escaped = re.sub(r"(?<!\\)([\[\]])", r"\\\1", escaped)
    return _opaque(f"![{escaped}]({_target(source, element.get('title'))})", pieces)


def url_of(given: str | None) -> str:
    """Return a URL as parsed by a browser from an attribute (url.spec.whatwg.org, section 4.4)."""
    return re.sub(r"[\t\n\r]", "", (given or "").strip(_C0_AND_SPACE))


def _is_safe(url: str) -> bool:
    """Return whether the URL is neither a script nor embedded data."""
    return bool(url) and not re.match(r"(javascript|vbscript|data|file|blob):", url, re.IGNORECASE)


def _target(url: str, title: str | None) -> str:
    """Return a link's destination and title, escaped."""
    url = re.sub(
        r"\s", lambda m: f"%{ord(m.group()):02X}" if m.group() < "\x80" else m.group(), url
    )
    url = re.sub(r"([\\<>])", r"\\\1", url)
    url = text_of.finish(url.replace("&", text_of.AMPERSAND), [], one_line=True)
    depths = [0]
    for character in re.findall("[()]", url):
        depths.append(depths[-1] + (1 if character == "(" else -1))
    if min(depths) < 0 or depths[-1] != 0 or max(depths) > 30:
        url = f"<{url}>"
    if not title:
        return url
    title = re.sub(r"\s+", " ", title).replace("\\", "\\\\").replace('"', '\\"')
    return f'{url} "{text_of.finish(title.replace("&", text_of.AMPERSAND), [], one_line=True)}"'


def formula(tex: str, display: bool) -> str:
    """Return a formula between our marks, with delimiters unless the page's TeX has some."""
    tex = re.sub(r"\n\s*\n", "\n", tex)
    if tex.startswith(("$", "\\(", "\\[")):
        written = tex
    else:
        written = f"\\[{tex}\\]" if display else f"\\({tex}\\)"
    return f"{_MATH_START}{written}{_MATH_END}"


_INLINE: dict[str, Callable[[Element, Pieces], str]] = {
    "em": _emphasis(text_of.EM_OPEN, text_of.EM_CLOSE),
    "i": _emphasis(text_of.EM_OPEN, text_of.EM_CLOSE),
    "strong": _emphasis(text_of.STRONG_OPEN, text_of.STRONG_CLOSE),
    "b": _emphasis(text_of.STRONG_OPEN, text_of.STRONG_CLOSE),
    "del": _emphasis(text_of.STRIKE_OPEN, text_of.STRIKE_CLOSE),
    "s": _emphasis(text_of.STRIKE_OPEN, text_of.STRIKE_CLOSE),
    "strike": _emphasis(text_of.STRIKE_OPEN, text_of.STRIKE_CLOSE),
    "code": _code,
    "a": _link,
    "img": _image,
    "br": lambda _element, _pieces: text_of.BREAK,
    "input": lambda _element, _pieces: "",
}
