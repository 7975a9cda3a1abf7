"""Measure the share of an answer's visible text that its Markdown preserves.

The HTML's visible text is compared with that of the Markdown rendered by pulldown-cmark, or by
markdown-it-py if the two differ: words and line breaks in order, code line by line with its white
space, formulas as units. No code is shared with the converter: the inputs are the HTML as it was
read and the Markdown that will be trained on.
"""

from __future__ import annotations

import difflib
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from functools import cache

import pyromark
from markdown_it import MarkdownIt

from ochat_ray.data.visible.text import CODE, FORMULA, Visible, visible_text

_FIRST_FORMULA = 0xF0000
"""First of the private-use characters of plane 15 that represent formulas in the text."""
_MAX_FORMULAS = 0xFFF0
_MAX_SLOW = 100_000
_MAX_PAIRS = 200_000
_MAX_MISSES = 100

_TICKS = re.compile("`+")
_BEFORE_FENCE = re.compile(r"[ \t>*+\-\d.)]*")
_REFERENCE = re.compile(
    r"(?<!\\)&(?=(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});)"
)
_MARK = re.compile(f"{FORMULA}(\\d+){FORMULA}")
_WORD = re.compile(r"[^ \n]+")


def text_fidelity(html: str, markdown: str, taken_off: Sequence[str] = ()) -> tuple[int, int]:
    """Count the characters of visible text that the Markdown preserves.

    Args:
        html: The answer as it was read.
        markdown: The converted answer.
        taken_off: Text that cleaning intentionally removed at the answer's beginning or end.

    Returns:
        Characters preserved in order, and those of the longer of original and result; the two are
            equal
        only if all were preserved in order and nothing was added.
    """
    shown = visible_text(html)
    original = _lines(shown, _without(_with_formulas(shown), taken_off))
    source, displayed = _mark_formulas(_show_references(markdown), shown)
    rendered = _lines(visible_text(_render_fast(source)), displayed=displayed)
    if rendered != original and len(source) <= _MAX_SLOW:
        again = _lines(visible_text(_markdown_it().render(source)), displayed=displayed)
        rendered = again if again == original else rendered
    if rendered != original:
        shown = visible_text(html, ill_formed=True)
        again = _lines(shown, _without(_with_formulas(shown), taken_off))
        original = again if again == rendered else original
    if rendered == original:
        size = sum(map(len, original)) + len(original)
        return size, size
    return _in_common(original, rendered)


def _render_fast(markdown: str) -> str:
    options = pyromark.Options.ENABLE_TABLES | pyromark.Options.ENABLE_STRIKETHROUGH
    return pyromark.html(markdown, options=options)


@cache
def _markdown_it() -> MarkdownIt:
    return MarkdownIt("commonmark").enable(["table", "strikethrough"])


def _lines(
    shown: Visible, lines: list[str] | None = None, displayed: Sequence[str] = ()
) -> list[str]:
    """Return the lines and the link targets, with each displayed formula on a separate line."""
    lines = shown.lines if lines is None else lines
    if displayed:
        pattern = re.compile("|".join(map(re.escape, displayed)))
        lines = [part for line in lines for part in _split_at(pattern, line)]
    return lines + [f"{CODE}{target}" for target in shown.targets]


def _split_at(pattern: re.Pattern[str], line: str) -> list[str]:
    if line.startswith(CODE):
        return [line]
    parts, done = [], 0
    for match in pattern.finditer(line):
        parts += [line[done : match.start()], match.group()]
        done = match.end()
    return [text for part in [*parts, line[done:]] if (text := part.strip(" "))]


def _with_formulas(shown: Visible) -> list[str]:
    """Return the lines with one character per formula, the same for equal TeX anywhere."""
    if not shown.formulas:
        return shown.lines
    return [_MARK.sub(lambda m: _formula(int(m[1])), line) for line in shown.lines]


def _formula(number: int) -> str:
    return f"/{chr(_FIRST_FORMULA + number % _MAX_FORMULAS)}/"


def _mark_formulas(markdown: str, shown: Visible) -> tuple[str, list[str]]:
    """Mark the original's formulas in the Markdown, each searched after the previous one.

    CommonMark has no formulas: between their delimiters it would see emphasis and escapes. The
    slashes make a mark punctuation on both sides, as the delimiters are. The marks of displayed
    formulas are returned second.
    """
    if not shown.formulas:
        return markdown, []
    code = _code_spans(markdown)
    parts: list[str] = []
    displayed: list[str] = []
    done, misses = 0, 0
    for number, tex in enumerate(shown.formulas):
        span = _find_formula(markdown, tex, done, code) if misses < _MAX_MISSES else None
        if span is None:
            misses += 1
            continue
        parts += [markdown[done : span[0]], _formula(number)]
        if markdown.startswith(("\\[", "$$"), span[0]):
            displayed.append(_formula(number))
        done = span[1]
    return "".join(parts) + markdown[done:], displayed


def _find_formula(
    markdown: str, tex: str, start: int, code: list[tuple[int, int]]
) -> tuple[int, int] | None:
    """Return the next span of the TeX with its delimiters, preferably outside of code."""
    in_code: tuple[int, int] | None = None
    quick = [(f"\\({tex}\\)"), (f"\\[{tex}\\]")]
    if tex.startswith(("$", "\\(", "\\[")):
        quick.append(tex)
    while True:
        places = [(at, at + len(q)) for q in quick if (at := markdown.find(q, start)) >= 0]
        span = min(places, default=None)
        if span is None and any(c.isspace() or c == "|" for c in tex):
            words = r"[\s>]+".join(
                r"\\?\|".join(map(re.escape, word.split("|"))) for word in tex.split()
            )
            match = re.compile(rf"\\\({words}\\\)|\\\[{words}\\\]").search(markdown, start)
            span = match.span() if match else None
        if span is None:
            return in_code
        at = bisect_right(code, (span[0], len(markdown))) - 1
        if at < 0 or code[at][1] <= span[0]:
            return span
        # It may not be code at all, since TeX contains backticks as well.
        in_code = in_code or span
        start = code[at][1]


def _code_spans(markdown: str) -> list[tuple[int, int]]:
    """Return the spans of code between fences or backticks, found without a parser."""
    runs = [match.span() for match in _TICKS.finditer(markdown)]
    same_length: dict[int, list[int]] = {}
    for number, (start, end) in enumerate(runs):
        same_length.setdefault(end - start, []).append(number)
    spans: list[tuple[int, int]] = []
    at = 0
    while at < len(runs):
        start, end = runs[at]
        closing: int | None = None
        if end - start >= 3 and _begins_line(markdown, start):
            fences = (
                n
                for n in range(at + 1, len(runs))
                if runs[n][1] - runs[n][0] >= end - start and _begins_line(markdown, runs[n][0])
            )
            closing = next(fences, len(runs) - 1)
        elif markdown[start - 1 : start] != "\\":
            equal = same_length[end - start]
            following = bisect_right(equal, at)
            if following < len(equal) and "\n\n" not in markdown[end : runs[equal[following]][0]]:
                closing = equal[following]
        if closing is not None:
            spans.append((start, runs[closing][1]))
            at = closing
        at += 1
    return spans


def _begins_line(markdown: str, at: int) -> bool:
    before = markdown[max(markdown.rfind("\n", 0, at) + 1, at - 100) : at]
    return bool(_BEFORE_FENCE.fullmatch(before))


def _show_references(markdown: str) -> str:
    """Escape character references, which count as errors: a model would learn to write them."""
    if "&" not in markdown or not _REFERENCE.search(markdown):
        return markdown
    parts, done = [], 0
    for start, end in _code_spans(markdown):
        parts += [_REFERENCE.sub(r"\\&", markdown[done:start]), markdown[start:end]]
        done = end
    return "".join(parts) + _REFERENCE.sub(r"\\&", markdown[done:])


def _without(lines: list[str], taken_off: Sequence[str]) -> list[str]:
    """Return the lines without the removed text, if it is at the beginning or end, or alone."""
    for text in taken_off:
        words = text.split()
        if not words:
            continue
        pattern = r"\s*".join(map(re.escape, words))
        whole = "\n".join(lines)
        for place in (rf"\A\s*{pattern}\s*", rf"\s*{pattern}\s*\Z", rf"(?m)^{pattern}\n"):
            rest, count = re.subn(place, "", whole)
            if count:
                lines = rest.split("\n") if rest else []
                break
    return lines


def _tokens(lines: list[str]) -> list[str]:
    tokens: list[str] = []
    for line in lines:
        if line.startswith(CODE):
            tokens.append(line)
        else:
            tokens += _WORD.findall(line)
            tokens.append("\n")
    return tokens


def _in_common(original: list[str], rendered: list[str]) -> tuple[int, int]:
    """Count characters of tokens common to both in the same order, and those of the longer."""
    before, after = _tokens(original), _tokens(rendered)
    longer = max(sum(map(len, before)), sum(map(len, after)))
    start = _common_start(before, after)
    end = _common_start(before[start:][::-1], after[start:][::-1])
    same = sum(map(len, before[:start])) + sum(map(len, before[len(before) - end :]))
    before, after = before[start : len(before) - end], after[start : len(after) - end]
    counts, others = Counter(before), Counter(after)
    if sum(n * others[token] for token, n in counts.items()) > _MAX_PAIRS:
        same += sum(len(token) * n for token, n in (counts & others).items())
    else:
        matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
        for match in matcher.get_matching_blocks():
            same += sum(map(len, before[match.a : match.a + match.size]))
    # Equal tokens in another order, or joined differently, are not equal text.
    return min(same, longer - 1), longer


def _common_start(one: list[str], other: list[str]) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))
