"""Detect the pager that an old ShareGPT extension copied to the start of a turn.

ChatGPT's page shows "2 / 3" next to a question that was edited, or an answer that was regenerated.
The extension copied it as text: "2 / 3What is a pager?". People write fractions, too, and a formula
such as "1 / 2x + 3 = 7" looks much the same. So a pager is certain only before a capitalized word
or markup; before mathematics and units it is ruled out; elsewhere it is possible, and counts only
in a conversation with a certain one.
"""

from __future__ import annotations

import re
from typing import Literal

Certainty = Literal["certain", "possible"]

PAGER_TEXT = re.compile(r"\s*(\d{1,2}) / (\d{1,2})(?!\d)")
_TAG = re.compile(r"<[A-Za-z/!]")
_WORD = re.compile(r"[^\W\d_]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]+")
_OPERATOR = re.compile(r"\s*[-+*/=^<>≤≥≠≈×·÷±→_(\[²³\d]")
_EQUATION = re.compile(r"\s*[=+*^×÷]")
_CALL = re.compile(r"[(^]")
_FRACTION_UNITS = frozenset(
    "of off th ths st nd nds rd rds s cup cups tsp teaspoon teaspoons tbsp tablespoon tablespoons "
    "pint pints "
    "quart quarts gallon gallons oz ounce ounces lb lbs pound pounds g gr gram grams kg mg kilo "
    "kilos ton tons l liter liters litre litres ml cl dl m cm mm km nm um meter meters metre "
    "metres "
    "inch inches ft foot feet yard yards mile miles mph kph ms s sec secs second seconds min mins "
    "minute minutes h hr hrs hour hours day days week weeks month months year years am pm hz khz "
    "mhz ghz kb mb gb tb bit bits byte bytes px pt em rem pi rad deg degree degrees mol n v w kw "
    "kwh mw j kj cal kcal k kelvin part parts share piece pieces slice slices full empty way time "
    "times point points star stars page pages scale chance sin cos tan log ln exp sqrt lim sum int "
    "dx dy dt xy mv".split()
)
# Counters and particles of Chinese, Japanese and Korean, which follow a fraction without a space.
_COUNTERS = frozenset(
    "的个個分以之是时時小天年月日次人倍半块塊元斤公千克杯页頁级級点點岁歲米升の倍は回本枚つ番が"
    "을를의로만정도배개명시은는이가과와인"
)


def pager_end(text: str) -> tuple[int, Certainty] | None:
    """Return the end of the pager at the text's start, and its certainty."""
    match = PAGER_TEXT.match(text)
    if match is None or not is_pager(match):
        return None
    rest = _CONTROL.sub("", text[match.end() : match.end() + 200])
    certainty = _certainty(rest)
    return (match.end(), certainty) if certainty else None


def is_pager(match: re.Match[str]) -> bool:
    """Return whether the first number is at most the second, as in "2 / 3"."""
    return 1 <= int(match[1]) <= int(match[2])


def without_pager(text: str, *, possible: bool = False) -> str:
    """Return a plain-text turn without a certain pager or, with `possible`, without any pager.

    A pager is followed directly by text: "2 / 3 of them" and "3 / 2What" were typed by a person.
    """
    found = pager_end(text)
    return text[found[0] :] if found and (possible or found[1] == "certain") else text


def _certainty(rest: str) -> Certainty | None:
    if not rest or rest[0] in " \t\r\n,.;:/-+*=%)\"'″′°^!?":
        return None
    if _TAG.match(rest):
        return "certain"
    word_match = _WORD.match(rest)
    if word_match is None:
        return "possible"
    word = word_match[0]
    after = rest[len(word) :]
    if not word[0].islower() and not word[0].isupper():  # scripts without capitals
        return None if word[0] in _COUNTERS else "certain"
    if word == "I":
        return "certain" if re.match(r"['’]|\s[a-z]", after) else None
    if len(word) == 1:
        return "possible" if not after or (word == "A" and re.match(r"\s[a-z]", after)) else None
    is_formula = (
        (len(word) <= 3 and _OPERATOR.match(after))
        or _EQUATION.match(after)
        or (len(word) <= 5 and _CALL.match(after))
    )
    if is_formula or word.lower() in _FRACTION_UNITS:
        return None
    return "certain" if word[0].isupper() else "possible"
