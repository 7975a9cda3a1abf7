"""Which language a text is in, for the report."""

from __future__ import annotations

import re


def language_of(text: str) -> str:
    """The ISO 639-1 code of a text's language by its first 150 characters, "" where unclear."""
    import py3langid  # loads its model, half a second

    words = re.sub(r"[\W\d_]+", " ", text[:150]).strip()
    if len(words) < 4:
        return ""
    language = str(py3langid.classify(words)[0])
    return "" if language == "zxx" else language
