"""Detect per answer whether it is ChatGPT's rendered HTML or text as written.

A browser that serializes a page escapes every `<`, `>` and `&` of its text, closes every element
and does not indent. ChatGPT's page uses the elements that Markdown can produce. An answer that
violates this is Markdown, or someone's HTML source code: it stays byte for byte.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ochat_ray.schema import Turn

Answers = Literal["auto", "html", "markdown"]
Shape = Literal["page", "dump", "roles", "other"]
"""Kind of record: a share page; a dump of {from, value} turns; a dump of {role, content} turns,
whose answers are HTML only in ChatGPT's own box; a format whose answers are never ChatGPT's
page."""

Kind = Literal["box", "blocks", "either", "markdown", "plain"]
"""Evidence in one answer: ChatGPT's own box; blocks from end to end; ambiguous markup or
character references; text that no page serializes; text without markup."""

_BLOCKS = frozenset("p ol ul pre div h1 h2 h3 h4 h5 h6 blockquote table hr".split())
_OF_MARKDOWN = frozenset(
    "p ol ul li pre code span div em strong a h1 h2 h3 h4 h5 h6 blockquote table thead tbody tr th "
    "td hr del".split()
)
_OPAQUE = re.compile(r"<(pre|code|svg|math|button|script(?=[^<>]*\bmath/tex))\b[^<>]*>")
"""Elements whose content does not indicate the format of the surrounding text."""

_VOID = frozenset("br hr img input wbr col source area embed".split())
_SOURCE_CODE = frozenset(
    "html head body script style link meta title base form nav header footer main article aside "
    "select option textarea iframe frame frameset label center font template object marquee".split()
)
"""Elements of a document's source code, which Markdown never produces."""

_FOREIGN = frozenset("b i u s big tt small strike fieldset legend dialog".split())
"""Elements that people write in HTML, and that no Markdown renderer produces."""

_KNOWN = (
    _BLOCKS
    | _OF_MARKDOWN
    | frozenset({"svg", "math", "button"})
    | _VOID
    | _SOURCE_CODE
    | _FOREIGN
    | frozenset(
        "sub sup kbd mark q cite abbr dfn var samp ins time details summary figure figcaption "
        "picture section dl dt dd caption colgroup tfoot address video audio canvas noscript ruby "
        "rt rp bdi bdo data progress meter annotation semantics".split()
    )
)

_TAG = re.compile(
    r"<(/?)([a-zA-Z][\w-]*)"
    r"((?:\s+[^\s\"'<>/=]+(?:\s*=\s*(?:\"[^\"]*\"|'[^']*'|[^\s\"'=<>`]+))?)*)\s*(/?)>"
)
_MAY_BE_LEFT_OPEN = frozenset("p li td th tr tbody thead dt dd".split())
"""Elements that HTML closes without an end tag."""

_FOREIGN_ATTRIBUTE = re.compile(
    r"\s(?:on[a-z]+|id|style|name|action|align|border|bgcolor|cell(?:padding|spacing))\s*=",
    re.IGNORECASE,
)
_MAY_HAVE_STYLE = frozenset("span td th tr img a li sup input section".split())
_BOX = re.compile(r"<div\b[^<>]*\bclass=(?:\"(?:[^\"<>]* )?|'(?:[^'<>]* )?)markdown[ \"']")
_BOX_WITHIN = 4000
_PAGER = re.compile(r"\d{1,4} / \d{1,4}\s*")
_COUNTER = re.compile(r"Copy\s?\d+ chars / \d+ words\s*\Z")
_REFERENCE = re.compile(r"&(?:amp|lt|gt|nbsp|quot|apos|#39|#x27|#\d{1,7});")
_INDENTED = re.compile(r"\n[ \t]+<")
_MARKDOWN = re.compile(
    r"`|\*\*\S|__\S|\[[^\[\]\n]*\]\(|^ {0,3}(?:#{1,6} |[-*+] |\d{1,9}[.)] |> |~~~|\|)", re.MULTILINE
)
_WRITTEN = re.compile(r"^ {0,3}(?:```|#{1,6} \S)|\*\*[^\s*][^*\n]*\*\*", re.MULTILINE)
_FENCE = re.compile(r"^\s{0,3}(?:```|~~~)", re.MULTILINE)


def mark_html(turns: Sequence[Turn], shape: Shape, answers: Answers = "auto") -> tuple[Turn, ...]:
    """Return the turns with `html` set on the answers that are ChatGPT's HTML."""
    of_answers = [turn.text for turn in turns if turn.role == "assistant"]
    if answers == "auto":
        decided = are_html(of_answers, shape)
    else:
        decided = [answers == "html" and _has_mark(text) for text in of_answers]
    if not any(decided):
        return tuple(turns)
    html = iter(decided)
    return tuple(
        replace(turn, html=next(html)) if turn.role == "assistant" else turn for turn in turns
    )


def are_html(answers: Sequence[str], shape: Shape) -> list[bool]:
    """Decide for each answer of one record; the others serve as evidence for ambiguous ones."""
    if shape == "other":
        return [False] * len(answers)
    found = [examine(answer) for answer in answers]
    trusted = {"box", "blocks"}
    paragraphs = any(evidence.paragraph for evidence in found)
    # A single answer of only blocks may be HTML code that the model wrote.
    if shape == "roles" or (shape == "dump" and not paragraphs):
        trusted = {"box"}
    # So may blocks next to answers in Markdown: most dumps were already converted.
    if shape == "dump" and any(map(_is_written_markdown, answers)):
        trusted = {"box"}
    beside_html = any(evidence.kind in trusted for evidence in found)
    beside_markdown = any(evidence.kind == "markdown" for evidence in found)

    def is_html(evidence: Evidence) -> bool:
        if evidence.kind in trusted:
            return True
        likely = beside_html or (shape == "page" and evidence.rendered)
        return evidence.kind == "either" and likely and not beside_markdown

    return [is_html(evidence) for evidence in found]


@dataclass(frozen=True, slots=True)
class Evidence:
    """Kind of one answer, and further evidence for HTML.

    `paragraph`: it has a paragraph or ChatGPT's box. `rendered`: all its elements are inline
    elements that Markdown produces, which nobody types next to Markdown.
    """

    kind: Kind
    paragraph: bool = False
    rendered: bool = False


def examine(answer: str) -> Evidence:
    """Examine one answer by itself, in linear time."""
    text = answer.strip()
    if (pager := _PAGER.match(text)) is not None:
        text = text[pager.end() :]
    if not _has_mark(text):
        return Evidence("plain")
    if text[:1] == "<" and _BOX.search(text, 0, _BOX_WITHIN) and _closes(text):
        return Evidence("box", paragraph=True)
    return _examine_markup(text)


def _is_written_markdown(answer: str) -> bool:
    return not answer.lstrip().startswith("<") and _WRITTEN.search(answer) is not None


def _has_mark(text: str) -> bool:
    return "<" in text or "&" in text


def _closes(text: str) -> bool:
    return text.endswith(">") or _COUNTER.search(text, max(0, len(text) - 100)) is not None


def _examine_markup(text: str) -> Evidence:
    """Examine the tags, up to the first thing that no page serializes."""
    plain = Evidence("markdown")
    text_around = _without_opaque(text)
    if text_around is None:
        return plain
    # Text, and then per tag: its slash, name, attributes, slash, and the following text.
    pieces = _TAG.split(text_around)
    texts = pieces[::5]
    names = {name.lower() for name in pieces[2::5]}
    if names & _SOURCE_CODE or not all(n.startswith("mjx-") for n in names - _KNOWN):
        return plain
    all_text = "".join(texts)
    if "<" in all_text or all_text.count("&") != len(_REFERENCE.findall(all_text)):
        return plain
    if _INDENTED.search("<".join(texts)):
        return plain
    found = _loose_text(pieces)
    if found is None:
        return plain
    loose, blocks = found
    if _FENCE.search(loose):
        return plain
    foreign = bool(names & _FOREIGN) or _has_foreign_attribute(pieces)
    if loose.strip() or not blocks:
        if _MARKDOWN.search(loose):
            return plain
        inline = bool(names & _OF_MARKDOWN) and not blocks
        return Evidence("either", rendered=inline and not foreign)
    return Evidence("either" if foreign else "blocks", paragraph="p" in names)


def _without_opaque(text: str) -> str | None:
    """Return the text with opaque elements emptied and comments left out; None if one is open."""
    parts: list[str] = []
    at = 0
    while (opening := _OPAQUE.search(text, at)) is not None:
        closing = f"</{opening[1]}>"
        end = text.find(closing, opening.end())
        if end < 0:
            return None
        name = "math" if opening[1] == "script" else opening[1]
        parts += [text[at : opening.start()], f"<{name}></{name}>"]
        at = end + len(closing)
    parts.append(text[at:])
    text = "".join(parts)
    if "<!--" not in text:
        return text
    outside, *comments = text.split("<!--")
    rests = [comment.partition("-->") for comment in comments]
    if not all(end for _, end, _ in rests):
        return None
    return outside + "".join(rest for _, _, rest in rests)


def _loose_text(pieces: Sequence[str]) -> tuple[str, bool] | None:
    """Return the text outside of all elements, and whether one of them is a block.

    None if the elements are not closed in the order in which they were opened.
    """
    loose = [pieces[0]]
    blocks = False
    open_names: list[str] = []
    for at in range(1, len(pieces), 5):
        name = pieces[at + 1].lower()
        if pieces[at]:
            if name not in _VOID and not _close(name, open_names):
                return None
        else:
            blocks = blocks or (not open_names and name in _BLOCKS)
            if name not in _VOID and not pieces[at + 3]:
                open_names.append(name)
        if not open_names:
            loose.append(pieces[at + 4])
    return (_COUNTER.sub("", "\n".join(loose)), blocks) if not open_names else None


def _close(name: str, open_names: list[str]) -> bool:
    while open_names:
        inner = open_names.pop()
        if inner == name:
            return True
        if inner not in _MAY_BE_LEFT_OPEN:
            return False
    return False


def _has_foreign_attribute(pieces: Sequence[str]) -> bool:
    return any(
        attributes
        and name.lower() not in _MAY_HAVE_STYLE
        and _FOREIGN_ATTRIBUTE.search(attributes) is not None
        for name, attributes in zip(pieces[2::5], pieces[3::5], strict=True)
    )
