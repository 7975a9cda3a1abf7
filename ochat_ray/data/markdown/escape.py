"""Escape the text of one Markdown block where needed, and check which delimiters work.

`blocks.py` writes inline content with sentinels: one for every character that could have a
meaning in Markdown, and one for every delimiter of emphasis. Whether a literal `*` would open
emphasis depends on the entire block, so `finish` decides here, following the rules of CommonMark
0.31. A `snake_case` word or `2 * 3` stays unchanged.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from html.entities import html5

# Unicode noncharacters: never in text for interchange (Unicode 15, section 23.7).
_LITERALS = "*_`[]<&\\!~"
_FIRST = 0xFDD0
STAR, UNDERSCORE, BACKTICK, OPEN_BRACKET, CLOSE_BRACKET, LESS, AMPERSAND, BACKSLASH, BANG, TILDE = (
    chr(_FIRST + i) for i in range(len(_LITERALS))
)
EM_OPEN, EM_CLOSE, STRONG_OPEN, STRONG_CLOSE, OPAQUE, BREAK = (
    chr(_FIRST + len(_LITERALS) + i) for i in range(6)
)
"""OPAQUE stands for finished Markdown, such as a code span; BREAK for a `<br>`."""
EDGE = "\ufde2"
"""Border of a block in a place that allows only inline content; several become one line break."""

STRIKE_OPEN, STRIKE_CLOSE = "\ufde3", "\ufde4"

_PLAIN = dict(zip((chr(_FIRST + i) for i in range(len(_LITERALS))), _LITERALS, strict=True))
_TO_SENTINEL = str.maketrans({plain: sentinel for sentinel, plain in _PLAIN.items()})
_SPECIAL = re.compile(r"[*_`\[\]<&\\!~]")
_SENTINELS = re.compile("[\ufdd0-\ufddf\ufde3\ufde4]")
_OPENERS = {EM_OPEN: "*", STRONG_OPEN: "**", STRIKE_OPEN: "~~"}
_CLOSERS = {EM_CLOSE: EM_OPEN, STRONG_CLOSE: STRONG_OPEN, STRIKE_CLOSE: STRIKE_OPEN}
_EMPHASIS = {*_OPENERS, *_CLOSERS}
_OPEN, _CLOSE = "".join(_OPENERS), "".join(_CLOSERS)
# Punctuation that may also be outside of emphasis, since it is not half of a pair.
LOOSE = r"[!#$%&+,\-./:;=?@^|~…·、。，：；！？．～—–￥¥€£°‰]"
PAIRS = {
    pair[0]: pair[1]
    for pair in ("“”", "‘’", "()", "（）", "「」", "『』", "《》", "〈〉", "【】", '""', "''", "«»")
}
_OPENING, _CLOSING = "".join(PAIRS), "".join(PAIRS.values())
_PUNCTUATION_INSIDE = re.compile(
    f"(?P<openers>[{_OPEN}]+)(?P<first>{LOOSE}+)|(?P<last>{LOOSE}+ ?)(?P<closers>[{_CLOSE}]+)"
)
_PAIR_INSIDE = re.compile(
    f"(?P<open>[{_OPEN}]+)(?P<first>[{_OPENING}])(?P<core>[^{_OPEN}{_CLOSE}{_OPENING}{_CLOSING}]+)"
    f"(?P<last>[{_CLOSING}])(?P<close>[{_CLOSE}]+)"
)
_ASCII_PUNCTUATION = set("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")

# The look-behinds prevent a long run of blanks from being tried at each of its positions.
_AROUND_BREAK = re.compile(f"(?<![ \\t\\n])[ \\t\\n]*{BREAK}[ \\t\\n]*")
_AT_ENDS = " \n" + BREAK + EDGE
_AROUND_EDGE = re.compile(
    f"(?<![ \\t\\n{BREAK}{EDGE}])[ \\t\\n{BREAK}]*{EDGE}[ \\t\\n{BREAK}{EDGE}]*"
)
_LINE_ENDS = re.compile(r"(?<![ \t\f\v])[ \t\f\v]*\n[ \t\n\f\v]*")
_ENTITY = re.compile(r"&(#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{0,31});")
_LINE_START = re.compile(
    r"""^(?:
      (?P<before>\#{1,6}(?=[ \t]|$) | [-+*](?=[ \t]|$) | > | ```+(?=[^`]*$) | ~~~+
               | \[[^\]\n]+\]: | (?:[*][ \t]*){3,}$ | (?:-[ \t]*){3,}$ | (?:_[ \t]*){3,}$)
    | (?P<number>\d{1,9})[.)](?=[ \t]|$)
    )""",
    re.MULTILINE | re.VERBOSE,
)
# Meaningful only below a line of text: underlines of headings, a table's second row.
_UNDERLINE = re.compile(r"\n(?==+[ \t]*$|-+[ \t]*$|[|:-][|: \t-]*$)", re.MULTILINE)
_CLOSING_HASHES = re.compile(r"(?:^|(?<=[ \t]))(#+)$")


def literal(text: str) -> str:
    """Return inline content for a text: every character with a Markdown meaning as a sentinel."""
    return text.translate(_TO_SENTINEL) if _SPECIAL.search(text) else text


def plain(inline: str) -> str:
    """Return the text of inline content, without its markup."""
    return _SENTINELS.sub(lambda m: _PLAIN.get(m.group(), ""), inline)


def finish(inline: str, pieces: Sequence[str], *, one_line: bool = False) -> str:
    """Return the Markdown source of one block's inline content.

    Args:
        inline: Text with sentinels; the n-th OPAQUE stands for `pieces[n]`.
        pieces: Finished Markdown of the OPAQUE marks.
        one_line: Whether the block cannot contain a line break (a heading or a table cell).
    """
    text = inline.strip()
    marked = not text.isascii()
    if marked:
        text = text.strip(_AT_ENDS).strip()
        if EDGE in text:
            text = _AROUND_EDGE.sub(BREAK, text)
        if BREAK in text:
            text = _AROUND_BREAK.sub(BREAK, text)
    if "\n" in text:
        text = _LINE_ENDS.sub(" " if one_line else "\n", text)
    if marked and _SENTINELS.search(text):
        text = _resolve(text, pieces, one_line)
    if not one_line:
        text = _escape_line_starts(text)
    if OPAQUE in text:
        first, *rest = text.split(OPAQUE)
        text = first + "".join(p + r for p, r in zip(pieces, rest, strict=True))
    return text


def heading_text(inline: str, pieces: Sequence[str]) -> str:
    """Return `finish` for a heading, whose trailing `#`s would be parsed as its end."""
    text = finish(inline, pieces, one_line=True)
    return _CLOSING_HASHES.sub(r"\\\1", text)


def _escape_line_starts(text: str) -> str:
    def escape(match: re.Match[str]) -> str:
        if number := match["number"]:
            # Only a list that starts with 1 can interrupt a paragraph.
            if match.start() and int(number) != 1:
                return match.group()
            return f"{number}\\{match.group()[len(number) :]}"
        return "\\" + match.group()

    if "\n" not in text:
        match = _LINE_START.match(text)
        return text if match is None else escape(match) + text[match.end() :]
    text = _LINE_START.sub(escape, text)
    return _UNDERLINE.sub(r"\n\\", text)


def _resolve(text: str, pieces: Sequence[str], one_line: bool) -> str:
    """Return the text with every sentinel except OPAQUE replaced."""
    replacements: dict[int, str] = {}
    if not _EMPHASIS.isdisjoint(text):
        text, replacements = _settle_emphasis(text)
    for sentinel in (STAR, UNDERSCORE):
        if sentinel in text:
            _escape_delimiters(text, sentinel, replacements)
    if BACKTICK in text:
        _escape_backticks(text, pieces, replacements)
    if TILDE in text:
        _escape_tildes(text, replacements)
    first_bracket, last_angle = text.find(OPEN_BRACKET), text.rfind(">")
    for match in _SENTINELS.finditer(text):
        at, sentinel = match.start(), match.group()
        if at not in replacements and sentinel != OPAQUE:
            replacements[at] = _replacement(text, at, one_line, first_bracket, last_angle)
    parts, done = [], 0
    for at in sorted(replacements):
        parts += [text[done:at], replacements[at]]
        done = at + 1
    return "".join(parts) + text[done:]


def _replacement(text: str, at: int, one_line: bool, first_bracket: int, last_angle: int) -> str:
    """Return the replacement for a sentinel whose meaning depends on its neighbours.

    `first_bracket` and `last_angle` are the positions of the first literal `[` and the last `>`.
    """
    sentinel, after = text[at], text[at + 1 : at + 2]
    if sentinel == BREAK:
        if one_line:
            return "<br>"
        # Two spaces would leave an empty line between two breaks, which ends the paragraph.
        return "\\\n" if BREAK in (text[at - 1 : at], after) else "  \n"
    if sentinel == BACKSLASH:
        active = not after or after in "\n|" or after in _ASCII_PUNCTUATION or _is_markup(after)
        return "\\\\" if active and (after or one_line) else "\\"
    if sentinel == LESS:
        starts_line = at == 0 or text[at - 1] in "\n" + BREAK
        starts_tag = bool(re.match(r"[A-Za-z/!?]", after)) or after == BANG
        return "\\<" if starts_tag and (starts_line or last_angle > at) else "<"
    if sentinel == AMPERSAND:
        entity = _ENTITY.match("&" + text[at + 1 : at + 40])
        known = entity and (entity[1].startswith("#") or entity[1] + ";" in html5)
        return "\\&" if known else "&"
    if sentinel == CLOSE_BRACKET:
        return "\\]" if after == "(" and 0 <= first_bracket < at else "]"
    if sentinel == BANG:
        return "\\!" if after == "[" else "!"
    return _PLAIN[sentinel]


def _is_markup(character: str) -> bool:
    return bool(_SENTINELS.match(character))


def _escape_backticks(text: str, pieces: Sequence[str], replacements: dict[int, str]) -> None:
    """Escape runs of backticks, which are code only if another run of the same length follows."""
    runs = list(re.finditer(f"{BACKTICK}+", text))
    lengths = Counter(len(run.group()) for run in runs)
    lengths.update(len(mark.group()) for piece in pieces if (mark := re.match("`+", piece)))
    beside_code = re.search(f"{OPAQUE}{BACKTICK}|{BACKTICK}{OPAQUE}", text)
    # All or none: an escaped backtick would still close code that an earlier one opens.
    active = beside_code or any(lengths[len(run.group())] > 1 for run in runs)
    for run in runs:
        replacements.update(dict.fromkeys(range(*run.span()), "\\`" if active else "`"))


def _escape_tildes(text: str, replacements: dict[int, str]) -> None:
    """Escape `~~` if it occurs twice, which dialects with strikethrough would interpret."""
    runs = [run for run in re.finditer(f"{TILDE}+", text) if len(run.group()) == 2]
    if len(runs) + text.count("~~") > 1:
        for run in runs:
            replacements.update(dict.fromkeys(range(*run.span()), "\\~"))


def _escape_delimiters(text: str, sentinel: str, replacements: dict[int, str]) -> None:
    """Escape the literal runs of `*` or `_` that would pair with another run."""
    runs = []  # (start, end, can open, can close, is literal)
    for match in re.finditer(f"{sentinel}+|[{''.join(_EMPHASIS)}]", text):
        start, end = match.span()
        if text[start] in _EMPHASIS:
            if replacements[start][0] == _PLAIN[sentinel]:
                opens = text[start] in _OPENERS
                runs.append((start, end, opens, not opens, False))
            continue
        before, after = _kind(text, start - 1), _kind(text, end)
        left = after != "space" and (after != "punctuation" or before != "letter")
        right = before != "space" and (before != "punctuation" or after != "letter")
        if sentinel == UNDERSCORE:
            opens = left and (not right or before == "punctuation")
            closes = right and (not left or after == "punctuation")
        else:
            opens, closes = left, right
        runs.append((start, end, opens, closes, True))
    first_opener = min((run[0] for run in runs if run[2]), default=len(text))
    last_closer = max((run[0] for run in runs if run[3]), default=-1)
    for start, end, opens, closes, is_literal in runs:
        if not is_literal:
            continue
        pairs = (opens and last_closer > start) or (closes and first_opener < start)
        # Next to a delimiter of emphasis it would lengthen that one.
        touches = _EMPHASIS.intersection(text[max(0, start - 1) : start] + text[end : end + 1])
        write = "\\" + _PLAIN[sentinel] if pairs or touches else _PLAIN[sentinel]
        replacements.update(dict.fromkeys(range(start, end), write))


def _settle_emphasis(text: str) -> tuple[str, dict[int, str]]:
    """Return the text with effective emphasis, and the replacement for each of its delimiters.

    CommonMark accepts no delimiter between a punctuation mark inside and a letter outside. Such
    punctuation is moved outside, where it looks the same ("**Note**:text"); if that does not help,
    the emphasis is dropped, which the measure of the structure counts. A character reference would
    make it effective, but a model would learn to write it.
    """
    text = text.replace(STRIKE_CLOSE + STRIKE_OPEN, "")  # `~~~~` would be neither
    written, blocked = _write_emphasis(text)
    if blocked:
        text = _PUNCTUATION_INSIDE.sub(_move_punctuation, text)
        text = _PAIR_INSIDE.sub(_move_pair, text)
        written, blocked = _write_emphasis(text)
    while blocked:  # dropped delimiters may have blocked their neighbours
        text = "".join(c for at, c in enumerate(text) if at not in blocked)
        written, blocked = _write_emphasis(text)
    return text, written


def _move_punctuation(match: re.Match[str]) -> str:
    """Move punctuation between a delimiter and a letter outside, unless nothing would be left."""
    text, (start, end) = match.string, match.span()
    if match["openers"]:
        is_blocked = _kind(text, start - 1) == "letter"
        leaves_text = _kind(text, end) != "space" and text[end] not in _CLOSERS
        return match["first"] + match["openers"] if is_blocked and leaves_text else match.group()
    is_blocked = _kind(text, end) == "letter"
    leaves_text = _kind(text, start - 1) != "space" and text[start - 1] not in _OPENERS
    return match["closers"] + match["last"] if is_blocked and leaves_text else match.group()


def _move_pair(match: re.Match[str]) -> str:
    """Move quotation marks or brackets around all of the emphasized text outside."""
    text, (start, end) = match.string, match.span()
    is_blocked = "letter" in (_kind(text, start - 1), _kind(text, end))
    core = match["core"]
    if not is_blocked or PAIRS[match["first"]] != match["last"] or core != core.strip():
        return match.group()
    return f"{match['first']}{match['open']}{core}{match['close']}{match['last']}"


def _write_emphasis(text: str) -> tuple[dict[int, str], set[int]]:
    """Return the text of every delimiter, and the delimiters of pairs that have no effect.

    `*` or `_` is chosen so that neighbours cannot merge.
    """
    replacements: dict[int, str] = {}
    blocked: set[int] = set()
    within: dict[int, str] = {}  # kinds of emphasis around the content of each opener
    for opener, closer, parent in _pairs(text):
        around = "" if parent is None else within[parent[0]]
        within[opener] = around + text[opener]
        if text[opener] in around:  # no visible difference
            blocked |= {opener, closer}
        if text[opener] == STRIKE_OPEN:
            character, mark = "~", "~~"
        else:
            character, mark = _emphasis_mark(text, opener, closer, parent, replacements)
        replacements[opener] = replacements[closer] = mark
        for outside, inside in ((opener - 1, opener + 1), (closer + 1, closer - 1)):
            needs_room = character == "_" or _kind(text, inside) == "punctuation"
            if needs_room and _kind(text, outside) == "letter":
                blocked |= {opener, closer}
    return replacements, blocked


def _emphasis_mark(
    text: str,
    opener: int,
    closer: int,
    parent: tuple[int, int] | None,
    replacements: Mapping[int, str],
) -> tuple[str, str]:
    """Return the character of a pair of `*` or `**`, and the delimiter's text."""
    double = text[opener] == STRONG_OPEN
    character = "*"
    after_sibling = text[opener - 1 : opener] in _CLOSERS
    if after_sibling and replacements.get(opener - 1, "").startswith("*"):
        character = "_"
    if parent is not None:
        # `***a***` is strong within em; the reverse, and doubles, need another mark.
        outer = replacements[parent[0]]
        opens_with, closes_with = parent[0] == opener - 1, parent[1] == closer + 1
        same = len(outer) == (2 if double else 1)
        if (opens_with and closes_with and len(outer) == 2) or (
            same and (opens_with or closes_with)
        ):
            character = "_" if outer[0] == "*" else "*"
    return character, character * (2 if double else 1)


def _pairs(text: str) -> list[tuple[int, int, tuple[int, int] | None]]:
    """Return (opener, closer, enclosing pair or None) by position, outer pairs first."""
    stack: list[int] = []
    found: dict[int, tuple[int, int | None]] = {}
    for match in re.finditer(f"[{''.join(_EMPHASIS)}]", text):
        if match.group() in _OPENERS:
            stack.append(match.start())
        else:
            opener = stack.pop()
            found[opener] = (match.start(), stack[-1] if stack else None)
    return [
        (opener, closer, None if parent is None else (parent, found[parent][0]))
        for opener, (closer, parent) in sorted(found.items())
    ]


def _kind(text: str, at: int) -> str:
    """Classify a character as space, punctuation or letter, as in CommonMark's delimiter rules."""
    if at < 0 or at >= len(text) or text[at] == BREAK:
        return "space"
    character = text[at]
    if character.isspace():
        # Renderers disagree on other white space, such as a line separator.
        is_space = character in " \t\n\f\r" or unicodedata.category(character) == "Zs"
        return "space" if is_space else "letter"
    if _is_markup(character) or character in _ASCII_PUNCTUATION:
        return "punctuation"
    return "punctuation" if unicodedata.category(character)[0] in "PS" else "letter"
