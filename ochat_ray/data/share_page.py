"""The conversation inside a ShareGPT page: JSON in its `__NEXT_DATA__` script.

The script's bytes are cut out of the page and parsed as JSON; the page itself is parsed as HTML
only where that fails. Pages are untrusted: their size is bounded, nothing of them is run.

Source: pages of sharegpt.com as Next.js served them in 2023, props.pageProps being {id, views,
content: {title, avatarUrl, model, items: [{from, value}]}}. A gpt item's value is HTML.
"""

from __future__ import annotations

import codecs
import re
import zlib
from dataclasses import dataclass
from typing import Any

import orjson
from lxml import etree

from ochat_ray.data.html_tree import ConversionError, tags_of
from ochat_ray.schema import Reason

MAX_PAGE_BYTES = 32 * 2**20
"""The longest pages of 2023 have some megabytes."""

_BOMS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16's, with which it begins
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_MARK = b"__NEXT_DATA__"
_OPENING = re.compile(
    rb"""<script\b[^<>]*?\bid\s*=\s*(?:"__NEXT_DATA__"|'__NEXT_DATA__'|__NEXT_DATA__(?=[\s>]))"""
    rb"""[^<>]*>""",
    re.IGNORECASE,
)
_CLOSING = re.compile(rb"</script", re.IGNORECASE)
_CHARSET = re.compile(rb"""<meta\b[^<>]*?\bcharset\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Unusable:
    """Why a page has no conversation."""

    reason: Reason
    detail: str


def page_record(page: bytes) -> dict[str, Any] | Unusable:
    """{id?, title?, model?, items: [...]} of a page's bytes, gzip'd or not, in any encoding.

    The avatar, views and whatever else the page holds are left behind.
    """
    if page[:2] == b"\x1f\x8b":
        unzipped = _gunzip(page)
        if unzipped is None:
            return Unusable(Reason.UNREADABLE, "the gzip data is damaged or cut off")
        page = unzipped
    if len(page) > MAX_PAGE_BYTES:
        return Unusable(Reason.TOO_LARGE, f"more than {MAX_PAGE_BYTES:,} bytes")
    data = _next_data(page)
    if isinstance(data, Unusable):
        return data
    props = _child(_child(data, "props"), "pageProps")
    content = _child(props, "content")
    if not isinstance(content.get("items"), list) or not content["items"]:
        return Unusable(Reason.NO_DATA, "no items at props.pageProps.content")
    return {
        "id": props.get("id") or content.get("id"),
        "title": content.get("title"),
        "model": content.get("model"),
        "items": content["items"],
    }


def _gunzip(page: bytes) -> bytes | None:
    """At most one byte more than a page may have."""
    stream = zlib.decompressobj(wbits=31)
    try:
        data = stream.decompress(page, MAX_PAGE_BYTES + 1)
    except zlib.error:
        return None
    return data if stream.eof or len(data) > MAX_PAGE_BYTES else None


def _child(parent: Any, name: str) -> dict[str, Any]:
    child = parent.get(name) if isinstance(parent, dict) else None
    return child if isinstance(child, dict) else {}


def _next_data(page: bytes) -> Any:
    """The script's JSON value, or why there is none."""
    if (bom := next((bom for bom in _BOMS if page.startswith(bom)), None)) is not None:
        page = _decoded(page, _BOMS[bom])
    elif b"\x00" in page[:64]:  # UTF-16 without a mark: every other byte of markup is zero
        page = _decoded(page, "utf-16-be" if page[:1] == b"\x00" else "utf-16-le")
    if not page or page.isspace():
        return Unusable(Reason.UNREADABLE, "the page is empty")
    script = _script(page)
    found = script is not None
    if script is None and _MARK in page:
        script = _script_by_parser(page)
    if script is None:
        return Unusable(Reason.NO_DATA, "no __NEXT_DATA__ script")
    try:
        return orjson.loads(script)
    except orjson.JSONDecodeError as error:
        declared = _declared_encoding(page, script)
        if declared is not None:
            return _next_data(_decoded(page, declared))
        if not found and not page.rstrip().endswith(b"</html>"):
            return Unusable(Reason.UNREADABLE, "the page is cut off")
        return Unusable(Reason.UNREADABLE, f"the script is not JSON: {error}")


def _script(page: bytes) -> bytes | None:
    """What stands in the script, cut out of the page's bytes.

    Only where the mark occurs is a tag looked for: a regular expression over the whole page would
    take as long as all the rest.
    """
    at = page.find(_MARK)
    while at >= 0:
        start = page.rfind(b"<", 0, at)
        if start >= 0 and (opening := _OPENING.match(page, start)):
            end = page.find(b"</script", opening.end())
            if end < 0:
                closing = _CLOSING.search(page, opening.end())
                return page[opening.end() : closing.start()] if closing else None
            return page[opening.end() : end]
        at = page.find(_MARK, at + 1)
    return None


def _script_by_parser(page: bytes) -> bytes | None:
    parser = etree.HTMLParser(encoding="utf-8", no_network=True, huge_tree=True)
    try:
        tags_of(page.decode("latin-1"))  # refuses what would take lxml quadratic time
        root = etree.fromstring(page, parser)
    except (ConversionError, etree.XMLSyntaxError):
        return None
    if root is None:
        return None
    for script in root.iter("script"):
        if script.get("id", "").strip() == _MARK.decode():
            return (script.text or "").encode("utf-8", "replace")
    return None


def _declared_encoding(page: bytes, script: bytes) -> str | None:
    """The encoding of a page whose script is not UTF-8; None where it is, and so is no cause."""
    try:
        script.decode()
        return None
    except UnicodeDecodeError:
        charset = _CHARSET.search(page[:4096])
        declared = charset[1].decode() if charset else "windows-1252"
        utf8 = declared.lower().replace("_", "-") in ("utf-8", "utf8")
        return "windows-1252" if utf8 else declared


def _decoded(page: bytes, encoding: str) -> bytes:
    """The page in UTF-8; what its encoding does not know is replaced."""
    try:
        return page.decode(encoding, "replace").encode("utf-8", "replace")
    except LookupError:
        return page.decode("windows-1252", "replace").encode()
