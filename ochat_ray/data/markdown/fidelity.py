"""Measure how much of a turn's structure its Markdown preserves.

The Markdown is rendered again, and both documents are normalized: chrome, boxes and highlighting
are removed, white space in text is collapsed, code is compared byte for byte, formulas are replaced
by a mark. Usually the normal forms are equal, which is checked with pulldown-cmark, hundreds of
times faster; if they differ, markdown-it-py renders again and blocks are compared one by one.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from functools import cache
from typing import Any
from urllib.parse import unquote

import pyromark
from markdown_it import MarkdownIt

from ochat_ray.data.markdown.blocks import BLANK_LINE, Converted
from ochat_ray.data.markdown.escape import LOOSE, PAIRS
from ochat_ray.data.markdown.forms import CODE_BLOCK, FORMULA, FORMULA_BLOCK, code_block
from ochat_ray.data.markdown.inline import MATH_MARK, split_at_breaks, url_of
from ochat_ray.data.markdown.tree import (
    BLOCKS,
    CHROME,
    CONTAINERS,
    EDGED,
    alignment_of,
    parse_rendered,
    rows_of,
)

Block = tuple[str, str]
"""Path of tags to a block, and its content."""

_INLINE = {
    "em": "em",
    "i": "em",
    "strong": "strong",
    "b": "strong",
    "code": "code",
    "del": "del",
    "s": "del",
    "strike": "del",
}
# Above these limits, comparing in order could take minutes on a malicious turn.
_MAX_SLOW = 500_000
_MAX_BLOCKS = 3_000
BREAK = "\x1c"
_EDGE, _PARAGRAPH_END = "\x19", "\x1a"
_EDGES = re.compile(f"[{BREAK}\\s]*{_EDGE}[{_EDGE}{BREAK}\\s]*")
_LAST_INSIDE = re.compile(f"({LOOSE}+ ?)(\x1e+)(?=\\w)")
_FIRST_INSIDE = re.compile(f"(?<=\\w)((?:\x1d(?:strong|em|del) )+)({LOOSE}+)")
_OPENING, _CLOSING = "".join(PAIRS), "".join(PAIRS.values())
_PAIR = f"(\x1d(?:strong|em|del) )([{_OPENING}])([^\x1d\x1e]+)([{_CLOSING}])\x1e"
_PAIR_INSIDE = re.compile(f"(?<=\\w){_PAIR}|{_PAIR}(?=\\w)")
_SPACE = re.compile(r"[ \t\n\f\v]{2,}|[\t\n\f\v]")


def fidelity(converted: Converted) -> tuple[int, int]:
    """Return the number of preserved blocks, and of blocks in the longer of original and result."""
    original = blocks_of(converted.root)
    rendered = blocks_of(parse_rendered(render_fast(converted.skeleton)))
    if rendered == original:
        return len(original), len(original)
    if len(converted.skeleton) <= _MAX_SLOW:
        rendered = blocks_of(parse_rendered(_markdown_it().render(converted.skeleton)))
        if rendered == original:
            return len(original), len(original)
    longer = max(len(original), len(rendered))
    if longer > _MAX_BLOCKS:
        return (Counter(original) & Counter(rendered)).total(), longer
    matcher = difflib.SequenceMatcher(None, original, rendered, autojunk=False)
    equal = sum(match.size for match in matcher.get_matching_blocks())
    return equal, longer


def render_fast(markdown: str) -> str:
    """Render CommonMark with tables to HTML by pulldown-cmark: in linear time for any text."""
    options = pyromark.Options.ENABLE_TABLES | pyromark.Options.ENABLE_STRIKETHROUGH
    return pyromark.html(markdown, options=options)


@cache
def _markdown_it() -> MarkdownIt:
    return MarkdownIt("commonmark").enable(["table", "strikethrough"])


def blocks_of(root: Any) -> list[Block]:
    """Return the blocks below an element, in order: leaves with content, lists with their start."""
    blocks: list[Block] = []
    _walk(root, "", blocks)
    return blocks


def _walk(container: Any, path: str, blocks: list[Block], *, tight: bool = False) -> None:
    run = [_with_ends(container.text or "")]

    def flush() -> None:
        whole = "".join(run)
        if not whole or whole.isspace():
            run.clear()
            return
        for part in [whole] if tight else whole.split(_PARAGRAPH_END):
            if text := _collapse(part):
                blocks.append((path if tight else path + "/p", text))
        run.clear()

    for child in container:
        tag = child.tag
        if tag in ("pre", CODE_BLOCK):
            flush()
            code = code_block(child)
            blocks.append((f"{path}/pre", f"{code.language}\n{code.text}"))
        elif tag == FORMULA_BLOCK:
            flush()
            blocks.append((path if tight else path + "/p", MATH_MARK))
        elif tag not in BLOCKS:
            if _holds_blocks(child):
                flush()
                _walk(child, path, blocks, tight=tight)
            else:
                _inline(child, run)
        else:
            flush()
            _block(child, path, blocks, tight)
        run.append(_with_ends(child.tail or ""))
    flush()


def _with_ends(text: str) -> str:
    """Mark paragraph ends: text next to paragraphs is plain text, where a blank line starts one."""
    return BLANK_LINE.sub(f"{_PARAGRAPH_END}\n", text) if "\n" in text else text


def _holds_blocks(element: Any) -> bool:
    if len(element) == 0 or element.tag in CHROME:
        return False
    return next(element.iter(*BLOCKS), None) is not None


def _block(element: Any, path: str, blocks: list[Block], tight: bool) -> None:
    tag = element.tag
    if tag in ("ul", "ol"):
        items = [child for child in element if child.tag == "li"]
        loose = any(child.tag == "p" for item in items for child in item)
        if len(items) == 1 and sum(1 for child in items[0] if child.tag in BLOCKS) <= 1:
            loose = False  # Markdown has no loose list of one item with one block
        start = element.get("start") or "1"
        blocks.append((f"{path}/{tag}", start if tag == "ol" else ""))
        for item in items:
            blocks.append((f"{path}/{tag}/li", ""))
            if loose:
                _walk(item, f"{path}/{tag}/li", blocks)
            else:
                _walk_tight(item, f"{path}/{tag}/li", blocks)
    elif tag == "table":
        for caption in element.iterchildren("caption"):
            _walk(caption, path, blocks)
        for number, row in enumerate(rows_of(element)):
            cells = [_text(cell) for cell in row if cell.tag in ("th", "td")]
            if number == 0:
                cells += [alignment_of(cell) for cell in row if cell.tag in ("th", "td")]
            blocks.append((f"{path}/tr", "\x1f".join(cells)))
    elif tag == "hr":
        blocks.append((f"{path}/hr", ""))
    elif tag == "blockquote":
        blocks.append((f"{path}/blockquote", ""))
        _walk(element, f"{path}/blockquote", blocks)
    elif tag in CONTAINERS:
        _walk(element, path, blocks, tight=tight)
    elif text := _text(element):
        blocks.append((f"{path}/{tag}", text))


def _walk_tight(item: Any, path: str, blocks: list[Block]) -> None:
    paragraphs = [child for child in item if child.tag == "p"]
    if paragraphs:  # the single paragraph of a list that Markdown cannot make loose
        _walk(item, path, blocks)
        blocks[:] = [(p.removesuffix("/p") if p == path + "/p" else p, t) for p, t in blocks]
    else:
        _walk(item, path, blocks, tight=True)


def _text(element: Any) -> str:
    parts = [element.text or ""]
    for child in element:
        _inline(child, parts)
        parts.append(child.tail or "")
    return _collapse("".join(parts))


def _collapse(text: str) -> str:
    if "\n" in text or "  " in text or "\t" in text or "\f" in text or "\v" in text:
        text = _SPACE.sub(" ", text)
    if "\x1e" in text:
        text = _move_punctuation(text)
    if _EDGE in text:
        text = _EDGES.sub(BREAK, text)
    if BREAK not in text:
        return text.strip().replace(_PARAGRAPH_END, "")
    # A break at the end of a block is not visible, and Markdown cannot represent it.
    text = text.replace(f" {BREAK}", BREAK).replace(f"{BREAK} ", BREAK)
    return text.strip().strip(" " + BREAK).strip().replace(_PARAGRAPH_END, "")


def _move_punctuation(text: str) -> str:
    """Move punctuation between emphasis and a letter outside, as CommonMark requires."""
    text = _LAST_INSIDE.sub(r"\2\1", text)
    text = _FIRST_INSIDE.sub(r"\2\1", text)
    return _PAIR_INSIDE.sub(_move_pair, text)


def _move_pair(match: re.Match[str]) -> str:
    mark, first, core, last = (group for group in match.groups() if group is not None)
    return f"{first}{mark}{core}\x1e{last}" if PAIRS[first] == last else match.group()


def _inline(element: Any, parts: list[str]) -> None:
    """Append an inline element's text with marks for its tags; white space at its ends goes out."""
    tag = element.tag
    if tag in CHROME:
        return
    if tag == "br":
        parts.append(BREAK)
    elif tag == "img":
        source = unquote(url_of(element.get("src")))
        parts.append(f"\x1dimg({source}){element.get('alt') or ''}\x1e")
    elif tag == "code":
        lines = split_at_breaks(element)
        parts.append(BREAK.join(f"\x1dcode {line}\x1e" if line else "" for line in lines))
    elif tag in (FORMULA, FORMULA_BLOCK):
        parts.append(MATH_MARK)
    else:
        inner: list[str] = [element.text or ""]
        for child in element:
            _inline(child, inner)
            inner.append(child.tail or "")
        text = "".join(inner)
        mark = _INLINE.get(tag)
        if tag == "a" and (href := url_of(element.get("href"))):
            mark = f"a({unquote(href)})"
        if mark and text.strip():
            core = text.strip()
            start = text.index(core)
            text = f"{text[:start]}\x1d{mark} {core}\x1e{text[start + len(core) :]}"
        parts.append(f"{_EDGE}{text}{_EDGE}" if tag in EDGED else text)
