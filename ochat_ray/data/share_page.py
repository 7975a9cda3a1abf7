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

from ochat_ray.schema import Reason

MAX_PAGE_BYTES = 32 * 2**20
"""The longest pages of 2023 have some megabytes."""

_BOMS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16's, with which it begins
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_MARK = b"__NEXT_DATA__"
_SCRIPT = re.compile(
    rb"""<script\b[^<>]*?\bid\s*=\s*(?:"__NEXT_DATA__"|'__NEXT_DATA__'|__NEXT_DATA__(?=[\s>]))"""
    rb"""[^<>]*>(.*?)</script""",
    re.DOTALL | re.IGNORECASE,
)
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
    page = _as_utf8(page)
    if not page.strip():
        return Unusable(Reason.UNREADABLE, "the page is empty")
    if _MARK not in page:
        return Unusable(Reason.NO_DATA, "no __NEXT_DATA__ script")
    match = _SCRIPT.search(page)
    script = match[1] if match else _script_by_parser(page)
    if script is None:
        return Unusable(Reason.NO_DATA, "no __NEXT_DATA__ script")
    try:
        return orjson.loads(script)
    except orjson.JSONDecodeError as error:
        if match is None and not page.rstrip().endswith(b"</html>"):
            return Unusable(Reason.UNREADABLE, "the page is cut off")
        return Unusable(Reason.UNREADABLE, f"the script is not JSON: {error}")


def _script_by_parser(page: bytes) -> bytes | None:
    parser = etree.HTMLParser(encoding="utf-8", no_network=True, huge_tree=True)
    try:
        root = etree.fromstring(page, parser)
    except etree.XMLSyntaxError:
        return None
    if root is None:
        return None
    for script in root.iter("script"):
        if script.get("id", "").strip() == _MARK.decode():
            return (script.text or "").encode("utf-8", "replace")
    return None


def _as_utf8(page: bytes) -> bytes:
    for bom, encoding in _BOMS.items():
        if page.startswith(bom):
            return page[len(bom) :] if encoding == "utf-8" else _decoded(page, encoding)
    if b"\x00" in page[:64]:  # UTF-16 without a mark: every other byte of markup is zero
        return _decoded(page, "utf-16-be" if page[:1] == b"\x00" else "utf-16-le")
    try:
        page.decode()
        return page
    except UnicodeDecodeError:
        charset = _CHARSET.search(page[:4096])
        declared = charset[1].decode() if charset else "windows-1252"
        utf8 = declared.lower().replace("_", "-") in ("utf-8", "utf8")
        return _decoded(page, "windows-1252" if utf8 else declared)


def _decoded(page: bytes, encoding: str) -> bytes:
    try:
        return page.decode(encoding, "replace").encode("utf-8", "replace")
    except LookupError:
        return page.decode("windows-1252", "replace").encode()
