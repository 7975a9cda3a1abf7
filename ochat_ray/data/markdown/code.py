"""Extract the code of a `<pre>` of ChatGPT's page: its language and lines, without toolbars.

In 2023 the page had a bar with the language and a button, then `<code class="language-x">` with
highlighted spans. Today it has a CodeMirror view instead of `<code>`, or more bars. Other pages
represent a line of code by a block element, a list item, a table row, or a `<span class="line">`.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ochat_ray.data.markdown.code_table import CELLS, TABLE_PARTS, number_cells

_NO_CODE = frozenset(
    "button svg style script noscript template select option textarea iframe object audio video "
    "canvas title".split()
)
BLOCK_TAGS = frozenset(
    "div p li ul ol tr table tbody thead tfoot section article figure figcaption header footer "
    "blockquote pre dl dt dd h1 h2 h3 h4 h5 h6 main aside nav address details summary caption "
    "center form fieldset legend menu search hgroup dialog dir".split()
)
_MORE_THAN_TEXT = _NO_CODE | BLOCK_TAGS | {"br"}
_LINE_CLASSES = frozenset(
    "line code-line codeline cm-line view-line token-line CodeMirror-line ace_line".split()
)
_VIEW_CLASSES = frozenset("cm-content CodeMirror-code view-lines ace_text-layer".split())
"""Elements that hold the lines in CodeMirror 6 and 5, Monaco and Ace."""
EDITOR_CLASSES = frozenset("cm-editor CodeMirror monaco-editor ace_editor".split()) | _VIEW_CLASSES

_BESIDE_LINES = re.compile(
    r"gutter|line-?numbers?\b|lineno|ln-numbers|blob-num|(?:^|\s)(?:ln|lnum)(?:\s|$)|"
    r"cm-(?:layer|cursor|selection|announced|panel)",
    re.IGNORECASE,
)
_LINE_STYLE = re.compile(r"display\s*:\s*(?:block|flex|grid|table-row|list-item)")
LINE_HINT = re.compile("[lL]ine|gutter|GUTTER|ln-num|\\bln(?:um)?\\b|blob-num|cm-|CodeMirror|style")
_UNSELECTABLE = re.compile(r"user-select\s*:\s*none")
_LABEL = re.compile(r"(?=.*[a-zA-Z])[\w+#.-]{1,30}")
_COPY = re.compile(r"(?:cop(?:y|ied)(?: code| to clipboard)?!?|edit|run|复制代码?|複製程式碼)*")
_MAX_BAR = 60
_BAR = re.compile(rf"(?:[\w+#./-]{{0,30}}?|plain text)\s*{_COPY.pattern}")


@dataclass(frozen=True, slots=True)
class Code:
    """Code block as between its fences, and text in the same `<pre>` before and after it."""

    language: str
    text: str
    before: str = ""
    after: str = ""


def code_of(pre: Any, *, may_have_lines: bool = True) -> Code:
    """Return the code block of a `<pre>`.

    `may_have_lines` is False if no attribute matches `LINE_HINT`, which saves the search.
    """
    if len(pre) == 1 and pre[0].tag == "code" and len(pre[0]) == 0 and not _has_own_text(pre):
        return Code(_language(pre[0]), (pre[0].text or "").removesuffix("\n"))
    codes = [] if pre.tag == "code" else list(pre.iter("code"))
    language = next((found for e in (pre, *codes) if (found := _language(e))), "")
    if codes and not _has_own_text(pre):
        before, after = _text_around_code(pre, codes)
        text = "\n".join(_text(code, may_have_lines=may_have_lines) for code in codes)
        return Code(
            language or _label(pre, codes[0]),
            text,
            "" if _is_bar(pre, before) else before,
            "" if _COPY.fullmatch(after.lower()) else after,
        )
    view = None if codes else next((e for e in pre.iter() if _is_view(e)), None)
    if view is not None:
        text = _text(view)
        if "view-lines" in view.get("class"):  # Monaco writes blanks as no-break spaces
            text = text.replace("\xa0", " ")
        return Code(language or _label(pre, view), text)
    if (button := _last_button(pre)) is not None and not codes:
        label, rest = _split_at(pre, button)
        if rest.strip() and len(label) <= _MAX_BAR and "\n" not in label:
            name = label.lower() if _LABEL.fullmatch(label) else ""
            return Code(language or name, _text(pre, behind=button))
    return Code(language, _text(pre).removeprefix("\n"))


def _is_bar(pre: Any, text: str) -> bool:
    """Return whether text above the code is a bar: the language, and labels of buttons."""
    if len(text) > _MAX_BAR:
        return False
    has_buttons = next(pre.iter("button", "svg"), None) is not None
    return has_buttons or _BAR.fullmatch(" ".join(text.lower().split())) is not None


def _has_own_text(pre: Any) -> bool:
    texts = [pre.text, *(child.tail for child in pre)]
    return any(text and text.strip() for text in texts)


def _text_around_code(pre: Any, codes: list[Any]) -> tuple[str, str]:
    """Return the text of a `<pre>` before and after its `<code>`, without buttons."""
    texts: list[list[str]] = [[]]
    _add_text_around_code(pre, texts)
    after = "" if len(texts) < len(codes) + 1 else "".join(texts[-1])
    return "".join(texts[0]).strip(), after.strip()


def _add_text_around_code(element: Any, texts: list[list[str]]) -> None:
    """Append the texts outside of code; those after a `<code>` form a separate list."""
    if element.text:
        texts[-1].append(element.text)
    for child in element:
        tag = child.tag
        if tag == "code":
            texts.append([])
        elif tag not in _NO_CODE and not is_beside_lines(child.get("class")):
            _add_text_around_code(child, texts)
        if child.tail:
            texts[-1].append(child.tail)


def _is_view(element: Any) -> bool:
    names = element.get("class")
    return bool(names) and not _VIEW_CLASSES.isdisjoint(names.split())


def _last_button(pre: Any) -> Any:
    return next(reversed(list(pre.iter("button"))), None)


def _split_at(pre: Any, button: Any) -> tuple[str, str]:
    """Return the text before and after a button."""
    before: list[str] = []
    after: list[str] = []
    target = before
    for event, value in _events(pre):
        if event == "skipped" and value is button:
            target = after
        elif event == "text":
            target.append(value)
    return "".join(before).strip(), "".join(after)


def _events(element: Any) -> list[tuple[str, Any]]:
    """Return ("open" | "close" | "skipped", element) and ("text", text) events in order."""
    events: list[tuple[str, Any]] = []
    _walk(element, events, number_cells(element))
    return events


def _walk(element: Any, events: list[tuple[str, Any]], numbers: Collection[Any]) -> None:
    shows_blanks = element.tag not in TABLE_PARTS
    has_cells = False
    events.append(("open", element))
    if element.text and (shows_blanks or element.text.strip()):
        events.append(("text", element.text))
    for child in element:
        tag = child.tag
        if tag == "br":
            events.append(("text", "\n"))
        elif (
            tag in _NO_CODE
            or child in numbers
            or is_beside_lines(child.get("class"))
            or _is_unselectable(child)
        ):
            events.append(("skipped", child))
        else:
            if tag in CELLS:
                if has_cells:
                    events.append(("text", "\t"))
                has_cells = True
            _walk(child, events, numbers)
        if child.tail and (shows_blanks or child.tail.strip()):
            events.append(("text", child.tail))
    events.append(("close", element))


def _text(element: Any, *, behind: Any = None, may_have_lines: bool = True) -> str:
    """Return the lines of an element's code; only those after the element `behind`, if given."""
    if behind is None and not (len(element) and _has_lines(element, may_have_lines)):
        return "".join(element.itertext()).removesuffix("\n")
    lines = _Lines()
    counts = behind is None
    opened: set[Any] = set()
    for event, value in _events(element):
        if event == "skipped":
            counts = counts or value is behind
        elif not counts:
            continue
        elif event == "text":
            lines.add(value)
        elif value is not element and _is_line(value):
            if event == "open":
                opened.add(value)
                lines.open(f"{value.tag} {(value.get('class') or '').split(' ')[0]}")
            elif value in opened:
                lines.close()
    return lines.text()


@lru_cache(maxsize=2048)
def is_beside_lines(names: str | None) -> bool:
    """Return whether an element with these classes is next to the lines, such as line numbers."""
    return names is not None and bool(_BESIDE_LINES.search(names))


def _is_unselectable(element: Any) -> bool:
    """Return whether the page excludes an element from copying, as it does line numbers."""
    style = element.get("style")
    return style is not None and bool(_UNSELECTABLE.search(style))


@lru_cache(maxsize=2048)
def _is_line_class(names: str | None) -> bool:
    return names is not None and not _LINE_CLASSES.isdisjoint(names.split())


def _has_lines(element: Any, may_have_classes: bool) -> bool:
    """Return whether an element may contain more than plain text and highlighting."""
    tags = [descendant.tag for descendant in element.iterdescendants()]
    if not _MORE_THAN_TEXT.isdisjoint(tags):
        return True
    for descendant in element.iterdescendants() if may_have_classes else ():
        names = descendant.get("class")
        if _is_line_class(names) or is_beside_lines(names) or descendant.get("style"):
            return True
    return False


def _is_line(element: Any) -> bool:
    if element.tag in BLOCK_TAGS:
        return True
    if _is_line_class(element.get("class")):
        return True
    style = element.get("style")
    return style is not None and bool(_LINE_STYLE.search(style))


class _Lines:
    """Lines of code, in markup that represents lines by elements.

    An element without another line in it is one line, even if it is empty and similar ones are not.
    A line break just before or after an element belongs to the element's border.
    """

    def __init__(self) -> None:
        self._lines: list[tuple[str, str]] = []  # text, kind of its element
        self._pending = ""
        self._kinds: list[str] = []
        self._after = ""  # "open" or "close" of the last element

    def add(self, text: str) -> None:
        """Append text to the current line."""
        self._pending += text

    def open(self, kind: str) -> None:
        """Begin an element; elements of one kind are lines of one listing."""
        self._end_loose_text()
        self._kinds.append(kind)
        self._after = "open"

    def close(self) -> None:
        """End the element that was opened last."""
        kind = self._kinds.pop()
        if self._after == "open":
            self._lines.append((self._pending.removesuffix("\n"), kind))
            self._pending = ""
        else:
            self._end_loose_text()
        self._after = "close"

    def text(self) -> str:
        """Return all lines."""
        if not self._after:
            return self._pending.removesuffix("\n")
        if self._pending.strip():
            self._end_loose_text()
        filled = {kind for text, kind in self._lines if text} | {""}
        return "\n".join(text for text, kind in self._lines if text or kind in filled)

    def _end_loose_text(self) -> None:
        """End the text between elements."""
        text, self._pending = self._pending, ""
        if text.strip():
            if self._after == "close":
                text = text.removeprefix("\n")
            self._lines.append((text.removesuffix("\n"), ""))
        elif self._after == "close":
            self._lines += [("", "")] * max(0, text.count("\n") - 1)


def _language(element: Any) -> str:
    for name in (element.get("class") or "").split():
        if name.startswith(("language-", "lang-")) and name.split("-", 1)[1] != "undefined":
            return re.sub(r"[`\s]", "", name.split("-", 1)[1])
    given = element.get("data-language") or element.get("data-lang") or ""
    return given if _LABEL.fullmatch(given) else ""


def _label(pre: Any, code: Any) -> str:
    """Return the language shown in the bar above the code."""
    for element in pre.iter("span", "div"):
        if element is code:
            break
        if next(element.iter("code"), None) is not None:
            continue
        if any(ancestor is code for ancestor in element.iterancestors()):
            break
        text = (element.text or "").strip()
        if _LABEL.fullmatch(text):
            return text.lower()
    return ""
