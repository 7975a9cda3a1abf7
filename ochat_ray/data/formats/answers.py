"""Decide of each answer on its own whether it is ChatGPT's rendered HTML or text as it was written.

A browser that serialises a page escapes every `<`, `>` and `&` of its text, closes every element
and does not indent. ChatGPT's page has the elements that Markdown can make. An answer that breaks
this is Markdown, or somebody's HTML source code: it stays byte for byte.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from ochat_ray.schema import Turn

Answers = Literal["auto", "html", "markdown"]
Origin = Literal["page", "dump", "roles", "other"]
"""Of a record: a share page; a dump of {from, value} turns; a dump of {role, content} turns, whose
answers are HTML only in ChatGPT's own box; a format whose answers are never ChatGPT's page."""

Kind = Literal["box", "blocks", "either", "markdown", "plain"]
"""Evidence of one answer: ChatGPT's own box; blocks from end to end; markup or character references
that could be HTML or not; text that no page serialises; text without a mark."""

_BLOCKS = frozenset("p ol ul pre div h1 h2 h3 h4 h5 h6 blockquote table hr".split())
_OF_MARKDOWN = frozenset(
    "p ol ul li pre code span div em strong a h1 h2 h3 h4 h5 h6 blockquote table thead tbody tr th "
    "td hr del".split()
)
_OPAQUE = frozenset("pre code svg math button".split())
"""Elements whose content says nothing of what the text around them is."""

_VOID = frozenset("br hr img input wbr col source area embed".split())
_SOURCE_CODE = frozenset(
    "html head body script style link meta title base form nav header footer main article aside "
    "select option textarea iframe frame frameset label center font template object marquee".split()
)
"""Elements of a document's source code, which Markdown never makes."""

_FOREIGN = frozenset("b i u s big tt small strike fieldset legend dialog".split())
"""Elements that people write in HTML, and that no Markdown renderer makes."""

_KNOWN = (
    _BLOCKS
    | _OF_MARKDOWN
    | _OPAQUE
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
_FOREIGN_ATTRIBUTE = re.compile(r"\s(?:on[a-z]+|id|style|name|action)\s*=", re.IGNORECASE)
_MAY_HAVE_STYLE = frozenset("span td th tr img a li sup input section".split())
_BOX = re.compile(r"<div\b[^<>]*\bclass=(?:\"(?:[^\"<>]* )?|'(?:[^'<>]* )?)markdown[ \"']")
_BOX_WITHIN = 4000
_PAGER = re.compile(r"\d{1,4} / \d{1,4}\s*")
_COUNTER = re.compile(r"Copy\s?\d+ chars / \d+ words\s*\Z")
_REFERENCE = re.compile(r"&(?:amp|lt|gt|nbsp|quot|apos|#39|#x27|#\d{1,7});")
_INDENTED = re.compile(r"\n[ \t]+\Z")
_MARKDOWN = re.compile(
    r"`|\*\*\S|__\S|\[[^\]\n]*\]\(|^ {0,3}(?:#{1,6} |[-*+] |\d{1,9}[.)] |> |~~~|\|)", re.MULTILINE
)
_FENCE = re.compile(r"^\s{0,3}(?:```|~~~)", re.MULTILINE)


def mark_html(turns: Sequence[Turn], origin: Origin, answers: Answers = "auto") -> tuple[Turn, ...]:
    """Return the turns with `html` set on the answers that are ChatGPT's HTML."""
    of_answers = [turn.text for turn in turns if turn.role == "assistant"]
    if answers == "auto":
        decided = are_html(of_answers, origin)
    else:
        decided = [answers == "html" and _has_mark(text) for text in of_answers]
    if not any(decided):
        return tuple(turns)
    html = iter(decided)
    return tuple(
        replace(turn, html=next(html)) if turn.role == "assistant" else turn for turn in turns
    )


def are_html(answers: Sequence[str], origin: Origin) -> list[bool]:
    """Decide of each answer of one record; the others are evidence where its own is not enough."""
    if origin == "other":
        return [False] * len(answers)
    found = [examine(answer) for answer in answers]
    trusted = {"box", "blocks"}
    paragraphs = any(evidence.paragraph for evidence in found)
    # One answer of blocks alone may be HTML code that the model wrote.
    if origin == "roles" or (origin == "dump" and not paragraphs):
        trusted = {"box"}
    beside_html = any(evidence.kind in trusted for evidence in found)
    beside_markdown = any(evidence.kind == "markdown" for evidence in found)

    def is_html(evidence: Evidence) -> bool:
        if evidence.kind in trusted:
            return True
        likely = beside_html or (origin == "page" and evidence.rendered)
        return evidence.kind == "either" and likely and not beside_markdown

    return [is_html(evidence) for evidence in found]


@dataclass(frozen=True, slots=True)
class Evidence:
    """Kind of one answer, whether it has a paragraph or ChatGPT's box, and whether all its elements
    are inline ones that Markdown makes, which nobody types beside Markdown."""

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
    return _Scan(text).evidence()


def _has_mark(text: str) -> bool:
    return "<" in text or "&" in text


def _closes(text: str) -> bool:
    return text.endswith(">") or _COUNTER.search(text, max(0, len(text) - 100)) is not None


@dataclass
class _Scan:
    """One pass over the tags of an answer."""

    text: str
    open: list[str] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    blocks: bool = False
    foreign: bool = False
    loose: list[str] = field(default_factory=list)
    """Text outside of any element."""

    def evidence(self) -> Evidence:
        """Walk the tags; the first thing that no page serialises ends it."""
        if not self._walk() or self.open:
            return Evidence("markdown")
        loose = _COUNTER.sub("", "\n".join(self.loose))
        if _FENCE.search(loose):
            return Evidence("markdown")
        if loose.strip() or not self.blocks:
            if _MARKDOWN.search(loose):
                return Evidence("markdown")
            inline = bool(self.names & _OF_MARKDOWN) and not self.blocks
            return Evidence("either", rendered=inline and not self.foreign)
        return Evidence("either" if self.foreign else "blocks", paragraph="p" in self.names)

    def _walk(self) -> bool:
        at = 0
        while at < len(self.text):
            start = self.text.find("<", at)
            if start < 0:
                return self._read_text(self.text[at:])
            if start > at and not self._read_text(self.text[at:start]):
                return False
            end = self._read_tag(start)
            if end is None:
                return False
            at = end
        return True

    def _read_text(self, text: str) -> bool:
        if text.count("&") != len(_REFERENCE.findall(text)) or _INDENTED.search(text):
            return False
        if not self.open and text.strip():
            self.loose.append(text)
        return True

    def _read_tag(self, start: int) -> int | None:
        """Return where the tag, or an element that is not looked into, ends; None where none is."""
        if self.text.startswith("<!--", start):
            end = self.text.find("-->", start)
            return end + 3 if end >= 0 else None
        tag = _TAG.match(self.text, start)
        if tag is None:
            return None
        name = tag[2].lower()
        if name == "script" and "math/tex" in tag[3]:
            name = "math"
        if name in _SOURCE_CODE or (name not in _KNOWN and not name.startswith("mjx-")):
            return None
        self.names.add(name)
        self.foreign |= name in _FOREIGN or (
            name not in _MAY_HAVE_STYLE and _FOREIGN_ATTRIBUTE.search(tag[3]) is not None
        )
        if tag[1]:
            return tag.end() if name in _VOID or self._close(name) else None
        self.blocks |= name in _BLOCKS and not self.open
        if name in _OPAQUE:
            closing = f"</{tag[2]}>"
            end = self.text.find(closing, tag.end())
            return end + len(closing) if end >= 0 else None
        if name not in _VOID and not tag[4]:
            self.open.append(name)
        return tag.end()

    def _close(self, name: str) -> bool:
        """Close an element; only those whose end tag HTML lets out may be open within it."""
        while self.open:
            inner = self.open.pop()
            if inner == name:
                return True
            if inner not in ("p", "li", "td", "th", "tr", "tbody", "thead", "dt", "dd"):
                return False
        return False
