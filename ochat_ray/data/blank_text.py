"""Detect text without visible characters, by Unicode properties.

A turn of zero-width characters, soft hyphens or fillers is as empty as one of spaces. Characters
within other text are not changed: the joiners of an emoji or of Persian belong to it.

Source: Unicode Character Database, PropList and DerivedCoreProperties.
"""

from __future__ import annotations

from html import unescape

import regex

# Blanks that are categorized as symbols or letters: Braille pattern blank, musical null
# notehead, Egyptian full and half blank, Khitan filler.
_BLANKS = "\u2800\U0001d159\U00013441\U00013442\U00016fe4"
# Signs such as U+0600 are format characters but visible.
_CHARACTER = (
    r"[[\p{White_Space}\p{Default_Ignorable_Code_Point}\p{Cf}\p{Cc}\p{Noncharacter_Code_Point}"
    rf"{_BLANKS}]--\p{{Prepended_Concatenation_Mark}}]"
)
_INVISIBLE = regex.compile(f"{_CHARACTER}*+", regex.V1)
# Most answers fail at the first letter.
_MARKUP_ONLY = regex.compile(rf"(?:{_CHARACTER}|<[^>]*>|&[#\w]+;)*+", regex.V1)
_TAG = regex.compile(r"<[^>]*>")
# Elements and attributes that are visible, or may be, without any text.
_SHOWN = regex.compile(
    r"<(?:img|picture|svg|hr|video|audio|iframe|object|embed|canvas|input|math|mjx-\w+)\b"
    r"|\bdata-\w*(?:math|tex|expr)",
    regex.IGNORECASE,
)


def shows_nothing(text: str) -> bool:
    """Return whether no character of the text is visible; true for the empty text."""
    return _INVISIBLE.fullmatch(text) is not None


def html_shows_nothing(html: str) -> bool:
    """Return whether HTML has no visible character, picture, rule or formula."""
    if _MARKUP_ONLY.fullmatch(html) is None or _SHOWN.search(html):
        return False
    return shows_nothing(unescape(_TAG.sub("", html)))
