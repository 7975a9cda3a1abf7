"""Extract the conversation from a share page: JSON in one of its scripts.

The script's bytes are cut out of the page and parsed as JSON; the page is parsed as HTML only if
that fails. Pages are untrusted: their size is bounded, and nothing in them is executed.

Source: pages of sharegpt.com as served by Next.js in 2023, with props.pageProps = {id, views,
content: {title, avatarUrl, model, items: [{from, value}]}}, where a gpt item's value is HTML, or
Markdown from other programs; chat.openai.com's of 2023 and 2024 (props.pageProps.serverResponse);
chatgpt.com's since then, with data from React Router's or Remix's loaders.
"""

from __future__ import annotations

import codecs
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lxml import etree

from ochat_ray.data.formats.loader_data import LoaderDataError, loader_data
from ochat_ray.data.json_decode import decode
from ochat_ray.data.markdown.tree import ConversionError, tags_of
from ochat_ray.schema import Reason

MAX_PAGE_BYTES = 32 * 2**20
"""Maximum page size. The longest pages of 2023 have a few megabytes."""

_BOMS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16's, which is a prefix of it
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_IGNORED_KEYS = frozenset({"avatarUrl", "views"})
_MARK = b"__NEXT_DATA__"
_MAX_TAG_BYTES = 1 << 14
"""Maximum size of the script's opening tag, which has few attributes."""
_OPENING = re.compile(
    rb"""<script\b[^<>]*?\bid\s*=\s*(?:"__NEXT_DATA__"|'__NEXT_DATA__'|__NEXT_DATA__(?=[\s>]))"""
    rb"""[^<>]*>""",
    re.IGNORECASE,
)
_CLOSING = re.compile(rb"</script", re.IGNORECASE)
_CHARSET = re.compile(rb"""<meta\b[^<>]*?\bcharset\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Unusable:
    """Reason why a page has no conversation."""

    reason: Reason
    detail: str


def page_record(page: bytes) -> dict[str, Any] | Unusable:
    """Return {id?, title?, model?, items: [...]} from a page's bytes, gzipped or not, any encoding.

    The avatar, views and everything else in the page are ignored.
    """
    if page[:2] == b"\x1f\x8b":
        unzipped = _gunzip(page)
        if unzipped is None:
            return Unusable(Reason.UNREADABLE, "the gzip data is damaged or cut off")
        page = unzipped
    if len(page) > MAX_PAGE_BYTES:
        return Unusable(Reason.TOO_LARGE, f"more than {MAX_PAGE_BYTES:,} bytes")
    page = _utf8(page)
    if not page or page.isspace():
        return Unusable(Reason.UNREADABLE, "the page is empty")
    data = _next_data(page)
    if isinstance(data, Unusable) and data.reason == Reason.NO_DATA:
        try:
            loaders = loader_data(page)
        except LoaderDataError as error:
            return Unusable(Reason.UNREADABLE, str(error))
        if loaders is not None:
            return _official(loaders)
    if isinstance(data, Unusable):
        return data
    props = _child(_child(data, "props"), "pageProps")
    if "serverResponse" in props:
        return _official({"": props})
    content = _child(props, "content")
    if not isinstance(content.get("items"), list) or not content["items"]:
        return Unusable(Reason.NO_DATA, "no items at props.pageProps.content")
    return {
        **{name: value for name, value in content.items() if name not in _IGNORED_KEYS},
        "id": props.get("id") or content.get("id"),
        "title": content.get("title"),
        "model": content.get("model"),
        "items": content["items"],
    }


def _official(loaders: Mapping[str, Any]) -> dict[str, Any] | Unusable:
    """Return the conversation of ChatGPT's own page, under any route name."""
    routes = [route for route in loaders.values() if isinstance(route, dict)]
    route = next((route for route in routes if "serverResponse" in route), None)
    if route is None:
        return Unusable(Reason.NO_DATA, "no serverResponse in the page's data")
    response = _child(route, "serverResponse")
    data = _child(response, "data")
    if not ("mapping" in data or "linear_conversation" in data):
        error = response.get("error")
        detail = f": {error[:200]}" if isinstance(error, str) and error else ""
        return Unusable(Reason.NO_DATA, f"no conversation in serverResponse.data{detail}")
    found = route.get("sharedConversationId") or data.get("conversation_id") or data.get("id")
    return {**data, "id": found}


def _gunzip(page: bytes) -> bytes | None:
    """Decompress a page, up to one byte more than the maximum."""
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
    """Parse the script's JSON; return an `Unusable` with the reason if there is none."""
    script = _script(page)
    found = script is not None
    if script is None and _MARK in page:
        script = _script_by_parser(page)
    if script is None:
        return Unusable(Reason.NO_DATA, "no __NEXT_DATA__ script")
    try:
        return decode(script)
    except ValueError as error:
        declared = _declared_encoding(page, script)
        if declared is not None:
            return _next_data(_decoded(page, declared))
        if not found and not page.rstrip().endswith(b"</html>"):
            return Unusable(Reason.UNREADABLE, "the page is cut off")
        return Unusable(Reason.UNREADABLE, f"the script is not JSON: {error}")


def _utf8(page: bytes) -> bytes:
    """Return the page in UTF-8 if its first bytes indicate UTF-16 or UTF-32."""
    if (bom := next((bom for bom in _BOMS if page.startswith(bom)), None)) is not None:
        return _decoded(page, _BOMS[bom])
    if b"\x00" in page[:64]:  # UTF-16 without a mark: every other byte of markup is zero
        return _decoded(page, "utf-16-be" if page[:1] == b"\x00" else "utf-16-le")
    return page


def _script(page: bytes) -> bytes | None:
    """Cut the script's text out of the page's bytes.

    A tag is searched only near the mark: a regular expression over the entire page would take as
    long as everything else.
    """
    at = page.find(_MARK)
    last = 0
    while at >= 0:
        start = page.rfind(b"<", last, at)
        last = at
        if start >= 0 and (opening := _OPENING.match(page, start, start + _MAX_TAG_BYTES)):
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
        tags_of(page.decode("latin-1"))  # rejects pages for which lxml takes quadratic time
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
    """Return the declared encoding of a page whose script is not UTF-8; None if it is UTF-8."""
    try:
        script.decode()
        return None
    except UnicodeDecodeError:
        charset = _CHARSET.search(page[:4096])
        declared = charset[1].decode() if charset else "windows-1252"
        utf8 = declared.lower().replace("_", "-") in ("utf-8", "utf8")
        return "windows-1252" if utf8 else declared


def _decoded(page: bytes, encoding: str) -> bytes:
    """Return the page in UTF-8; bytes that are invalid in its encoding are replaced."""
    try:
        return page.decode(encoding, "replace").encode("utf-8", "replace")
    except LookupError:
        return page.decode("windows-1252", "replace").encode()
