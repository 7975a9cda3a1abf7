"""Convert ChatGPT's rendered HTML back to the Markdown that it was rendered from.

The criterion of success: rendered as CommonMark with tables, the result has the structure of the
HTML, block by block, and its code byte for byte (measured by `fidelity.py`).

Sources: CommonMark 0.31 (spec.commonmark.org), the table extension of GitHub Flavored Markdown, and
the markup of chat.openai.com in spring 2023 as ShareGPT stored it: `<pre>` with a language label
and a "Copy code" button around `<code class="hljs language-x">`, KaTeX with its TeX in
`annotation[encoding="application/x-tex"]`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from ochat_ray.data.markdown import escape as text_of
from ochat_ray.data.markdown.forms import CODE_BLOCK, FORMULA_BLOCK, code_block, tex_of
from ochat_ray.data.markdown.inline import (
    Pieces,
    formula,
    inline_element,
    inline_of,
    is_inline,
    skeleton,
    without_marks,
)
from ochat_ray.data.markdown.lists import items_of
from ochat_ray.data.markdown.noise import HTML_NOISE, Noise, strip_noise
from ochat_ray.data.markdown.tree import (
    BLOCKS,
    CHROME,
    CONTAINERS,
    Element,
    alignment_of,
    parse,
    rows_of,
)

Kind = Literal["paragraph", "heading", "code", "list", "quote", "table", "rule"]

BLANK_LINE = re.compile(r"\n[ \t]*\n\s*")


@dataclass(frozen=True, slots=True)
class Converted:
    """Converted turn.

    `skeleton` is the Markdown with `MATH_MARK` for every formula, which CommonMark does not have;
    `root` is the parsed HTML without its noise, which is in `noise`.
    """

    markdown: str
    skeleton: str
    root: Element
    noise: Noise


@dataclass(frozen=True, slots=True)
class _Block:
    kind: Kind
    text: str
    marker: str = ""
    """For a list: the character that separates it from a list before it."""
    interrupts: bool = True
    """True if the block can follow a paragraph's text on the next line."""


def html_to_markdown(html: str) -> str:
    r"""Return the Markdown of a turn that ChatGPT's page rendered as `html`.

    Formulas become `\(...\)` and `\[...\]`. Buttons, labels and additions of browser extensions
    are removed.

    Raises:
        ConversionError: More than 250 levels of nesting, or `MAX_HTML_CHARACTERS`.
    """
    return convert(html).markdown


def convert(html: str, noise: Collection[str] = HTML_NOISE) -> Converted:
    """Return `html_to_markdown` with the data for `fidelity`; `noise` names what to remove."""
    root = parse(html)
    taken_off = strip_noise(root, html, noise)
    text = "\n\n".join(block.text for block in _blocks(root))
    return Converted(without_marks(text), skeleton(text), root, taken_off)


def _blocks(container: Element, *, prose: bool = False) -> list[_Block]:
    """Return the blocks of a container's content; runs of inline content become paragraphs.

    `prose`: the content is a list item's, where a blank line in the text has no meaning.
    """
    blocks: list[_Block] = []
    pieces: Pieces = []
    run: list[str] = []

    def flush() -> None:
        nonlocal run, pieces
        if not run:
            return
        inline = "".join(run)
        if inline.strip() and (text := text_of.finish(inline, pieces)):
            blocks.append(_Block("paragraph", text))
        run, pieces = [], []

    def add(text: str) -> None:
        if prose or "\n" not in text:
            run.append(text_of.literal(text))
            return
        first, *others = BLANK_LINE.split(text)
        run.append(text_of.literal(first))
        for other in others:
            flush()
            run.append(text_of.literal(other))

    if container.text:
        add(container.text)
    for child in container:
        tag = child.tag
        if _is_block(child):
            flush()
            if tag in CONTAINERS:
                blocks += _blocks(child)
            elif tag == "table":
                blocks += _table(child)
            elif block := _block(child, blocks[-1] if blocks else None):
                blocks.append(block)
        else:
            run.append(inline_element(child, pieces))
        if child.tail:
            add(child.tail)
    flush()
    return blocks


def _is_block(element: Element) -> bool:
    if element.tag in BLOCKS:
        return True
    if len(element) == 0 or element.tag in CHROME or is_inline(element.tag):
        return False
    # A span or an unknown element around blocks.
    return next(element.iter(*BLOCKS), None) is not None


def _block(element: Element, previous: _Block | None) -> _Block | None:
    tag = element.tag
    if tag == "p":
        return _paragraph(element)
    if tag in ("ul", "ol"):
        return _list(element, previous)
    if tag in (CODE_BLOCK, "pre"):
        code = code_block(element)
        return _Block("code", _fence(code.language, code.text))
    if tag == "blockquote":
        quoted = "\n\n".join(block.text for block in _blocks(element))
        return _Block("quote", "\n".join(f"> {q}" if q else ">" for q in quoted.split("\n")))
    if tag == "hr":
        # Dashes below a line of text would make it a heading.
        return _Block("rule", "---")
    if tag[0] == "h" and tag[1:].isdigit():
        pieces: Pieces = []
        inline = inline_of(element, pieces)
        hashes = "#" * int(tag[1])
        return _Block("heading", f"{hashes} {text_of.heading_text(inline, pieces)}".rstrip())
    if tag == FORMULA_BLOCK and (tex := tex_of(element)):
        return _Block("paragraph", formula(*tex))
    blocks = _blocks(element)
    return _Block("paragraph", "\n\n".join(block.text for block in blocks)) if blocks else None


def _paragraph(element: Element) -> _Block | None:
    pieces: Pieces = []
    text = text_of.finish(inline_of(element, pieces), pieces)
    return _Block("paragraph", text) if text else None


def _fence(language: str, code: str) -> str:
    longest = max((len(run) for run in re.findall("`{3,}", code)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}{language}\n{code}\n{fence}" if code else f"{fence}{language}\n{fence}"


def _list(element: Element, previous: _Block | None) -> _Block | None:
    items = items_of(element)
    if not items:
        return None
    loose = any(child.tag == "p" for item in items for child in item)
    ordered = element.tag == "ol"
    markers = ".)" if ordered else "-*"
    # Two consecutive lists with the same marker would be one.
    marker = markers[previous is not None and previous.marker == markers[0]]
    number = _start(element)
    texts = []
    for offset, item in enumerate(items):
        bullet = f"{number + offset}{marker}" if ordered else marker
        texts.append(_item(bullet, _blocks(item, prose=True), loose))
    return _Block(
        "list",
        ("\n\n" if loose else "\n").join(texts),
        marker=marker,
        interrupts=(not ordered or number == 1) and not texts[0].rstrip().endswith(bullet),
    )


def _start(element: Element) -> int:
    start = element.get("start") or "1"
    return int(start) if re.fullmatch(r"\d{1,9}", start) else 1


def _item(bullet: str, blocks: Sequence[_Block], loose: bool) -> str:
    if not blocks:
        return bullet
    text = blocks[0].text if blocks[0].kind != "rule" else "___"
    for before, block in pairwise(blocks):
        if loose or not _can_follow(before, block):
            text += "\n\n" + block.text
        else:
            text += "\n" + ("___" if block.kind == "rule" else block.text)
    indent = " " * (len(bullet) + 1)
    first, *rest = text.split("\n")
    return "\n".join([f"{bullet} {first}", *(indent + line if line else "" for line in rest)])


def _can_follow(before: _Block, block: _Block) -> bool:
    """Return whether the block can follow on the next line, without a blank line."""
    if block.kind == "paragraph":
        return before.kind in ("code", "heading", "rule")
    return before.kind != "paragraph" or block.interrupts


def _table(element: Element) -> list[_Block]:
    """Return a table, preceded by its caption as a paragraph."""
    captions = [block for child in element.iterchildren("caption") for block in _blocks(child)]
    own_rows = rows_of(element)
    rows = [[_cell(cell) for cell in row if cell.tag in ("th", "td")] for row in own_rows]
    rows = [row for row in rows if row]
    if not rows:
        return captions
    columns = max(map(len, rows))
    first = next(row for row in own_rows if len(row))
    alignments = [_alignment(cell) for cell in first if cell.tag in ("th", "td")]
    alignments += ["---"] * (columns - len(alignments))
    rows = [row + [""] * (columns - len(row)) for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in [rows[0], alignments, *rows[1:]]]
    return [*captions, _Block("table", "\n".join(lines))]


def _cell(element: Element) -> str:
    pieces: Pieces = []
    inline = inline_of(element, pieces)
    return text_of.finish(inline, pieces, one_line=True).replace("\n", " ").replace("|", "\\|")


def _alignment(cell: Element) -> str:
    return {"left": ":---", "right": "---:", "center": ":---:"}.get(alignment_of(cell), "---")
