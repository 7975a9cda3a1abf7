"""Visible lines of a code block; helpers of `text.py`.

A page writes code as text with line breaks, with `<br>`, as block elements (CodeMirror's `cm-line`,
a list, a table with line numbers), or as `<span class="line">` that CSS makes a block.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from html import unescape

BLOCK_NAMES = frozenset(
    "address article aside blockquote body caption center dd details dialog dir div dl dt fieldset "
    "figcaption figure footer form h1 h2 h3 h4 h5 h6 header hgroup hr html legend li main menu nav "
    "ol p pre search section summary table tbody td tfoot th thead tr ul".split()
)
NOT_SHOWN = frozenset(
    "audio button canvas datalist embed head iframe noscript object optgroup option script select "
    "style svg template textarea title video".split()
)
_VOID = frozenset("area base br col embed hr img input link meta source track wbr".split())
_CELL_NAMES = frozenset(("td", "th"))
_CODE_BLOCK_NAMES = BLOCK_NAMES - _CELL_NAMES
_BETWEEN_CELLS = frozenset("table thead tbody tfoot tr".split())
_ENDED_BY = {
    "tr": _CELL_NAMES | {"tr"},
    "td": _CELL_NAMES,
    "th": _CELL_NAMES,
    "li": frozenset(("li",)),
    "dt": frozenset(("dt", "dd")),
    "dd": frozenset(("dt", "dd")),
}
"""Elements, and the open elements that their start tag closes implicitly."""
_MAX_COUNTING = 2

_ATTRIBUTE = re.compile(r"""([^\s=/"'<>]+)(?:\s*=\s*("[^"]*"?|'[^']*'?|[^\s"'][^\s]*))?""")
_DISPLAY_NONE = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)
_UNSEEN_CLASSES = frozenset(("sr-only", "visually-hidden", "screen-reader-text"))
_BESIDE_CODE = re.compile(
    r"gutter|line-?numbers?\b|lineno|ln-numbers|blob-num|(?:^|\s)(?:ln|lnum)(?:\s|$)|"
    r"cm-(?:layer|cursor|selection|announced|panel)",
    re.IGNORECASE,
)
_LINE_CLASS = re.compile(
    r"(?:^|\s)(?:line|code-?line|cm-line|view-line|token-line|CodeMirror-line|ace_line)(?:\s|$)"
)
_BLOCK_STYLE = re.compile(r"display\s*:\s*(?:block|flex|grid|table-row|list-item)")
_UNSELECTABLE = re.compile(r"user-select\s*:\s*none")
_CODE_BOX = re.compile(r"\b(?:cm-content|CodeMirror-code|view-lines|ace_text-layer)\b")
_TELLING = re.compile(
    r"line|gutter|ln-num|lnum|\bln\b|display|user-select|hidden|sr-only|blob-num|cm-"
)
_COPY = re.compile(r"(?:cop(?:y|ied)(?: code| to clipboard)?!?|edit|run|复制代码?|複製程式碼)*")
_MAX_LABEL = 60
_LABELS = re.compile(
    r"(?:[\w+#./-]{0,30}?|plain text) ?"
    r"(?:cop(?:y|ied)(?: code| to clipboard)?!?|edit|run|复制代码?|複製程式碼)*"
)


def attributes_of(raw: str) -> dict[str, str]:
    """Parse a tag's attributes; the first of two with the same name counts."""
    found: dict[str, str] = {}
    for name, value in _ATTRIBUTE.findall(raw):
        if value[:1] in ("'", '"'):
            value = value[1:].removesuffix(value[0])
        found.setdefault(name.lower(), unescape(value) if "&" in value else value)
    return found


def is_hidden(given: dict[str, str]) -> bool:
    """Return whether an element with these attributes is invisible."""
    return (
        ("hidden" in given and given["hidden"].lower() != "until-found")
        or bool(_DISPLAY_NONE.search(given.get("style", "")))
        or not _UNSEEN_CLASSES.isdisjoint(given.get("class", "").split())
    )


def is_beside_code(given: dict[str, str]) -> bool:
    """Return whether an element with these attributes has line numbers or is an editor's helper."""
    return bool(
        _BESIDE_CODE.search(given.get("class", "")) or _UNSELECTABLE.search(given.get("style", ""))
    )


def subtree_end(parts: list[str], at: int) -> int:
    """Return the position of the tag that closes the element at `at`, or the end."""
    name = parts[at]
    if name in _VOID:
        return at
    if parts[at + 1].endswith("/") and name in ("path", "rect", "svg"):
        return at
    closing, depth = f"/{name}", 1
    names = parts[at + 3 :: 3] if len(parts) - at < 600 else parts[at + 3 : at + 603 : 3]
    if name not in names[: names.index(closing)] if closing in names else False:
        return at + 3 + 3 * names.index(closing)
    for i in range(at + 3, len(parts), 3):
        other = parts[i]
        if other == closing:
            depth -= 1
            if depth == 0:
                return i
        elif other == name:
            depth += 1
    return len(parts)


def code_lines(parts: list[str], at: int, end: int) -> tuple[str, str, str]:
    """Return the text before the code, the code, and the text after it, for a `<pre>`.

    A bar with the language and buttons is not text. Character references are not resolved yet.
    """
    names = parts[at:end:3]
    first, last = _code_range(parts, at, end, names)
    before, after, codes_are_lines = "", "", True
    if (first, last) != (at, end):
        if _own_text(parts, at, end, first, last):
            first, last, codes_are_lines = at, end, False
        else:
            before = _text_between(parts, at, first)
            after = _text_between(parts, last, end)
            words = " ".join(unescape(before).lower().split())
            buttons = "button" in names or "svg" in names
            if len(before) <= _MAX_LABEL and (buttons or _LABELS.fullmatch(words)):
                before = ""
            if _COPY.fullmatch(after.lower().strip()):
                after = ""
    code = _text(parts, first, last, codes_are_lines)
    # The first line break of a <pre> is not visible.
    if first == at or names[(first - at) // 3] == "pre":
        code = code.removeprefix("\n")
    return before, code, after


def _code_range(parts: list[str], at: int, end: int, names: list[str]) -> tuple[int, int]:
    """Return the code's range: `<code>` elements, an editor's box, or all after the buttons."""
    if "code" in names:
        first = at + 3 * names.index("code")
        last = max((i for i in range(first, end, 3) if parts[i] == "/code"), default=end)
        return first, last
    for i in range(at, end, 3):
        if parts[i + 1] and _CODE_BOX.search(parts[i + 1]):
            return i, min(subtree_end(parts, i), end)
    if "/button" in names:
        button = max(i for i in range(at, end, 3) if parts[i] == "/button")
        label = _text_between(parts, at, button)
        rest = parts[button + 2] + _text_between(parts, button + 3, end)
        if rest.strip() and len(label) <= _MAX_LABEL and "\n" not in label.strip():
            return button, end
    return at, end


def _own_text(parts: list[str], at: int, end: int, first: int, last: int) -> bool:
    """Return whether the `<pre>` has own text outside of the code from `first` to `last`."""
    return any(i < first or i >= last for i in own_texts(parts, at, end))


def own_texts(parts: list[str], at: int, end: int) -> Iterator[int]:
    """Yield the positions of the tags that are followed by the element's own text."""
    depth = 0
    for i in range(at, end, 3):
        name = parts[i]
        if i > at and name not in _VOID:
            depth += -1 if name[0] == "/" else 1
        if depth == 0 and parts[i + 2].strip():
            yield i


def _text_between(parts: list[str], start: int, end: int) -> str:
    """Return the text between two positions, without buttons."""
    texts, i = [], start
    while i < end:
        if parts[i] in NOT_SHOWN:
            i = subtree_end(parts, i)
            if i >= end:
                break
        if i > start or parts[i][0] == "/" or parts[i] == "pre":
            texts.append(parts[i + 2])
        i += 3
    return "".join(texts).strip()


def _text(parts: list[str], start: int, end: int, codes_are_lines: bool) -> str:
    """Return the code's text from the tag at `start` to that at `end`."""
    names = set(parts[start + 3 : end : 3])
    simple = names <= {"span", "/span", "a", "/a", "b", "/b", "i", "/i", "em", "/em", "mark"}
    if simple and not _TELLING.search(" ".join(parts[start + 1 : end : 3])):
        return "".join(parts[start + 2 : end : 3]).removesuffix("\n")
    lines = _Lines()
    open_tags: list[tuple[str, bool]] = []
    opened_names: Counter[str] = Counter()
    counting = _counting_cells(parts, start, end) if "tr" in names else {}
    is_behind_cell = False
    if codes_are_lines and parts[start] == "code" and "code" in names:
        open_tags.append(("code", True))
        opened_names["code"] += 1
        lines.open("code")
    lines.add(parts[start + 2])
    i = start + 3
    while i < end:
        name, raw, text = parts[i], parts[i + 1], parts[i + 2]
        if name[0] == "/":
            while opened_names[name[1:]]:
                opened, is_line = open_tags.pop()
                opened_names[opened] -= 1
                if is_line:
                    lines.close()
                if opened == name[1:]:
                    break
        elif name == "br":
            lines.add("\n")
        elif name not in _VOID:
            given = attributes_of(raw) if raw and _TELLING.search(raw) else {}
            classes = given.get("class", "")
            if i in counting:
                i = counting[i]
                continue
            if name in NOT_SHOWN or is_hidden(given) or is_beside_code(given):
                i = subtree_end(parts, i)
                if i >= end:
                    break
                text = parts[i + 2]
            else:
                if name in _CELL_NAMES:
                    lines.add("\t" * is_behind_cell)
                while open_tags and open_tags[-1][0] in _ENDED_BY.get(name, ()):
                    opened, is_line = open_tags.pop()
                    opened_names[opened] -= 1
                    if is_line:
                        lines.close()
                is_behind_cell = name in _CELL_NAMES or (is_behind_cell and name != "tr")
                is_line = name in _CODE_BLOCK_NAMES or (codes_are_lines and name == "code")
                is_line = is_line or bool(_LINE_CLASS.search(classes))
                is_line = is_line or bool(_BLOCK_STYLE.search(given.get("style", "")))
                open_tags.append((name, is_line))
                opened_names[name] += 1
                if is_line:
                    lines.open(name + classes.split(" ")[0])
        if not (open_tags and open_tags[-1][0] in _BETWEEN_CELLS and not text.strip()):
            lines.add(text)
        i += 3
    for _, is_line in reversed(open_tags):
        if is_line:
            lines.close()
    return lines.text()


def _counting_cells(parts: list[str], start: int, end: int) -> dict[int, int]:
    """Map the line-number cells of a listing to the cells after them, by position.

    They form a first column of consecutive numbers; a diff has two such columns.
    """
    counting: dict[int, int] = {}
    rows: list[list[int]] = []
    for i in range(start, end, 3):
        name = parts[i]
        if name == "table":
            rows = []
        elif name == "tr":
            rows.append([])
        elif name in _CELL_NAMES and rows:
            rows[-1].append(i)
        elif name == "/table":
            counting.update(_counting(parts, [row for row in rows if row]))
            rows = []
    return counting


def _counting(parts: list[str], rows: list[list[int]]) -> Iterator[tuple[int, int]]:
    for column in range(_MAX_COUNTING if rows else 0):
        if min(map(len, rows)) < column + 2:
            return
        cells = [(row[column], row[column + 1]) for row in rows]
        if not _count_lines(["".join(parts[a + 2 : b : 3]).strip() for a, b in cells]):
            return
        yield from cells


def without_counting_cells(parts: list[str]) -> list[str]:
    """Return the parts without line-number cells, in tables that add only those to a `<pre>`."""
    kept: list[str] = []
    done, cells = 0, list[int]()
    for i in range(1, len(parts), 3):
        name = parts[i]
        if name == "table":
            cells = []
        elif name in _CELL_NAMES:
            cells.append(i)
        elif name == "/table" and len(cells) == 2:
            first, second = cells
            if "pre" in parts[second:i:3] and _count_lines(
                "".join(parts[first + 2 : second : 3]).split()
            ):
                kept += parts[done:first]
                done = second
    return kept + parts[done:]


def _count_lines(texts: list[str]) -> bool:
    """Return whether texts are line numbers, of which some may be empty."""
    numbers = [int(text) for text in texts if re.fullmatch("[0-9]{1,7}", text)]
    if len(numbers) != sum(map(bool, texts)):
        return False
    if len(texts) == 1:
        return numbers in ([], [1])
    return numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else True


class _Lines:
    """Code lines from text and from the start and end of elements that represent lines.

    An element without others in it is a line, even if empty. A line break between two such elements
    is not another line.
    """

    def __init__(self) -> None:
        self._chunk: list[str] = []
        self._lines: list[tuple[str, str]] = []
        self._kinds: list[str] = []
        self._last = ""

    def add(self, text: str) -> None:
        self._chunk.append(text)

    def open(self, kind: str) -> None:
        self._between()
        self._kinds.append(kind)
        self._last = "open"

    def close(self) -> None:
        kind = self._kinds.pop()
        if self._last == "open":
            self._lines.append(("".join(self._chunk).removesuffix("\n"), kind))
            self._chunk.clear()
        else:
            self._between()
        self._last = "close"

    def _between(self) -> None:
        text = "".join(self._chunk)
        self._chunk.clear()
        if not text.strip():
            blank = max(text.count("\n") - 1, 0) if self._last == "close" else 0
            self._lines += [("", "between")] * blank
            return
        if self._last == "close":
            text = text.removeprefix("\n")
        self._lines.append((text.removesuffix("\n"), "between"))

    def text(self) -> str:
        if not self._last:
            return "".join(self._chunk).removesuffix("\n")
        while self._lines and self._chunk and not "".join(self._chunk).strip():
            self._chunk.clear()
        self._between()
        filled = {kind for line, kind in self._lines if line} | {"between"}
        return "\n".join(line for line, kind in self._lines if kind in filled)
