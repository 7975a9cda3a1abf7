"""The HTML of a chat's turn as a tree, and what the elements of ChatGPT's page mean.

Page text is untrusted: parsing uses no network and no entities of the page's own, and both depth
and size are bounded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from lxml import etree

Element = Any  # lxml's elements have no types of their own

MAX_HTML_CHARACTERS = 8_000_000
"""Of one turn. The longest of a page is some hundred thousand."""

CHROME = frozenset(
    "button svg style script noscript template head title meta link iframe object embed audio "
    "video canvas select option textarea".split()
)
"""Elements of the page around the text, or that have no text."""

CONTAINERS = frozenset(
    "html body div section article main header footer figure figcaption center details summary "
    "form fieldset aside nav address dl dd dt li".split()
)
BLOCKS = CONTAINERS | frozenset("p h1 h2 h3 h4 h5 h6 ul ol pre blockquote table hr".split())


_NONCHARACTERS = re.compile("[\ufdd0-\ufdef]")
_UNWANTED_REFERENCE = re.compile(
    r"&#(?:0*(13|6497[6-9]|649[89]\d|6500[0-7])|[xX]0*([dD]|[fF][dD][dDeE][0-9a-fA-F]))(?!\w);?"
)


class ConversionError(ValueError):
    """The HTML is nested too deeply, or too long, to be a chat's turn."""


def parse(html: str) -> Element:
    """The `<body>` of a fragment of HTML: no network, no entities of its own, bounded depth.

    Raises:
        ConversionError: as `html_to_markdown`.
    """
    if len(html) > MAX_HTML_CHARACTERS:
        raise ConversionError(f"{len(html):,} characters of HTML in one turn")
    if "\r" in html:
        html = html.replace("\r\n", "\n").replace("\r", "\n")
    if not html.isascii():
        html = _NONCHARACTERS.sub("", html)
    if "&#" in html:
        html = _UNWANTED_REFERENCE.sub("", html)
    parser = _parser()
    data = f"<html><body>{html}</body></html>".encode("utf-8", "surrogatepass")
    try:
        root = etree.fromstring(data, parser)
    except etree.XMLSyntaxError as error:
        raise ConversionError(str(error)) from error
    if any(entry.type_name == "ERR_RESOURCE_LIMIT" for entry in parser.error_log):
        raise ConversionError("HTML is nested too deeply")
    body = None if root is None else root.find("body")
    return etree.Element("body") if body is None else body


@cache
def _parser() -> Any:
    return etree.HTMLParser(
        encoding="utf-8", remove_comments=True, remove_pis=True, no_network=True
    )


def tex_of(element: Element) -> tuple[str, bool] | None:
    """The TeX of a formula's outermost element and whether it is displayed; None for others."""
    classes = (element.get("class") or "").split()
    if not {"katex", "katex-display", "math"} & set(classes) and element.tag != "math":
        return None
    annotation = next(
        (a for a in element.iter("annotation") if a.get("encoding") == "application/x-tex"), None
    )
    if annotation is None:
        return None
    display = bool({"katex-display", "math-display"} & set(classes))
    if not display:
        inside = (e.get("class") or "" for e in element.iter("span"))
        display = any("katex-display" in name.split() for name in inside)
    return "".join(annotation.itertext()).strip(), display


def code_of(pre: Element) -> tuple[str, str]:
    """The language (or "") and the text of a code block, as it was between its fences."""
    codes = list(pre.iter("code"))
    language = next((lang for code in codes if (lang := _language(code))), "")
    if codes:
        content = "\n".join(_preformatted(code) for code in codes)
        language = language or _label(pre, codes[0])
    else:
        content = _preformatted(pre)
    return language, content.removesuffix("\n")


def alignment_of(cell: Element) -> str:
    """left, right, center or "" of a table's cell."""
    style = re.search(r"text-align:\s*(left|right|center)", cell.get("style") or "")
    return style[1] if style else (cell.get("align") or "").lower()


def _preformatted(element: Element) -> str:
    return "".join(_preformatted_parts(element))


def _preformatted_parts(element: Element) -> Iterator[str]:
    if next(element.iter("br", *CHROME), None) is None:
        yield from element.itertext()
        return
    if element.text:
        yield element.text
    for child in element:
        if child.tag == "br":
            yield "\n"
        elif child.tag not in CHROME:
            yield from _preformatted_parts(child)
        if child.tail:
            yield child.tail


def _language(code: Element) -> str:
    for name in (code.get("class") or "").split():
        if name.startswith(("language-", "lang-")) and name.split("-", 1)[1] != "undefined":
            return re.sub(r"[`\s]", "", name.split("-", 1)[1])
    return ""


def _label(pre: Element, code: Element) -> str:
    """The language that the bar above the code shows."""
    for element in pre.iter("span", "div"):
        if element is code or next(element.iter("code"), None) is not None:
            continue
        if any(ancestor is code for ancestor in element.iterancestors("code")):
            break
        text = (element.text or "").strip()
        if re.fullmatch(r"[\w+#.-]{1,30}", text):
            return text
    return ""
