"""Detect the language of a text, for the report."""

from __future__ import annotations

import re


def language_of(text: str) -> str:
    """Return the ISO 639-1 code of a text's first 150 characters; "" if the language is unclear."""
    import py3langid  # loads its model, which takes half a second

    words = re.sub(r"[\W\d_]+", " ", text[:150]).strip()
    if len(words) < 4:
        return ""
    language = str(py3langid.classify(words)[0])
    return "" if language == "zxx" else language
