"""Parse the HTML of a chat turn, and classify its elements.

Page text is untrusted: parsing uses neither network nor entities defined by the page, and depth,
size and the number of attributes per tag are bounded.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from lxml import etree

from ochat_ray.data.markdown.forms import CODE_BLOCK, FORMULA_BLOCK, normalize
from ochat_ray.data.markdown.nesting import may_have_closed_early, restore_names, with_unknown_names

Element = Any  # lxml's elements have no types of their own

MAX_HTML_CHARACTERS = 2_000_000
"""Maximum characters of one turn. The longest real ones have a few hundred thousand."""

MAX_ATTRIBUTES = 256
"""Maximum attributes per tag: lxml compares each with all before it. Pages have up to thirty."""

CHROME = frozenset(
    "button svg style script noscript template head title meta link iframe object embed audio "
    "video canvas select option textarea".split()
)
"""Elements of the page around the text, or without text."""

CONTAINERS = frozenset(
    "html body div section article main header footer figure figcaption center details summary "
    "form fieldset legend aside nav address hgroup search dialog menu dl dd dt li".split()
)
BLOCKS = CONTAINERS | frozenset("p h1 h2 h3 h4 h5 h6 ul ol pre blockquote table hr".split())
BLOCKS |= {FORMULA_BLOCK, CODE_BLOCK}
EDGED = BLOCKS | frozenset("tr td th caption".split())
"""Elements that start and end a line, in places that allow only inline content."""

_LONG_ATTRIBUTES = 2 * MAX_ATTRIBUTES
# A tag's name and attributes, which may have a `>` in quotes. No part of it is matched twice.
_TAG = re.compile(
    r"""<([a-zA-Z][^\s/>]*+)([^>=]*+(?:=\s*+(?:"[^"]*+(?:"|\Z)|'[^']*+(?:'|\Z)|)[^>=]*+)*+)"""
)
_VALUE = re.compile(r"""=\s*(?:"[^"]*"?|'[^']*'?|[^\s"'>]+)""")

_PAGE_END = re.compile(r"</(?:body|html)\s*>")
_NONCHARACTERS = re.compile("[\ufdd0-\ufdef]")
_UNWANTED_REFERENCE = re.compile(
    r"&#(?:0*(13|6497[6-9]|649[89]\d|6500[0-7])|[xX]0*([dD]|[fF][dD][dDeE][0-9a-fA-F]))(?!\w);?"
)


class ConversionError(ValueError):
    """HTML that is nested too deeply, too long, or has too many attributes for a chat turn."""


def parse(html: str) -> Element:
    """Parse a turn's HTML into its `<body>`, normalized by `forms`.

    Raises:
        ConversionError: See `html_to_markdown`.
    """
    if len(html) > MAX_HTML_CHARACTERS:
        raise ConversionError(f"{len(html):,} characters of HTML in one turn")
    if "\r" in html:
        html = html.replace("\r\n", "\n").replace("\r", "\n")
    if not html.isascii():
        html = _NONCHARACTERS.sub("", html)
    if "\x00" in html:
        html = html.replace("\x00", "")
    if "&#" in html:
        html = _UNWANTED_REFERENCE.sub("", html)
    names, attributes = tags_of(html)
    if "</body" in html or "</html" in html:  # a browser shows what follows it
        html = _PAGE_END.sub("", html)
    body, errors = _parse(html)
    if may_have_closed_early(errors):
        body, _ = _parse(with_unknown_names(html))
        restore_names(body)
    normalize(body, names, attributes)
    return body


def parse_rendered(html: str) -> Element:
    """Parse HTML from a Markdown renderer, without normalization.

    Raises:
        ConversionError: The HTML is nested too deeply.
    """
    return _parse(html)[0]


def _parse(html: str) -> tuple[Element, list[Any]]:
    """Parse HTML; return the body and libxml2's errors."""
    parser = _parser()
    data = f"<html><body>{html}</body></html>".encode("utf-8", "surrogatepass")
    try:
        root = etree.fromstring(data, parser)
    except etree.XMLSyntaxError as error:
        raise ConversionError(str(error)) from error
    errors = list(parser.error_log)
    if any(entry.type_name == "ERR_RESOURCE_LIMIT" for entry in errors):
        raise ConversionError("HTML is nested too deeply")
    body = None if root is None else root.find("body")
    return etree.Element("body") if body is None else body, errors


def tags_of(html: str) -> tuple[set[str], str]:
    """Return the names of a page's tags in lower case, and the source of all their attributes.

    Raises:
        ConversionError: A tag has more than `MAX_ATTRIBUTES`, for which lxml takes quadratic time.
    """
    tags = set(_TAG.findall(html))
    for _, attributes in tags:
        if len(attributes) >= _LONG_ATTRIBUTES:
            count = len(re.findall(r"[^\s/=]+", _VALUE.sub("= ", attributes)))
            if count > MAX_ATTRIBUTES:
                raise ConversionError(f"a tag with {count:,} attributes or more")
    return {name.lower() for name, _ in tags}, " ".join([attributes for _, attributes in tags])


@cache
def _parser() -> Any:
    return etree.HTMLParser(
        encoding="utf-8", remove_comments=True, remove_pis=True, no_network=True
    )


def alignment_of(cell: Element) -> str:
    """Return the alignment of a table cell: left, right, center or ""."""
    style = re.search(r"text-align:\s*(left|right|center)", cell.get("style") or "")
    return style[1] if style else (cell.get("align") or "").lower()


def rows_of(table: Element) -> list[Element]:
    """Return the rows of a table, without those of tables in its cells."""
    rows = list(table.iter("tr"))
    if next(table.iterdescendants("table"), None) is None:
        return rows
    return [row for row in rows if next(row.iterancestors("table")) is table]
