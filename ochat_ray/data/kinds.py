"""Kinds of files and archive members by name: read, or skipped and counted as passed over."""

from __future__ import annotations

import posixpath
import re

PAGES = (".html", ".htm")
RECORDS = (".json", ".jsonl", ".ndjson", ".parquet")
COMPRESSIONS = ("", ".gz", ".bz2", ".xz", ".zst")
ZIP = ".zip"
TARS = (".tar", ".tgz", ".tbz2", ".txz", ".tzst", *(".tar" + z for z in COMPRESSIONS[1:]))

EXPECTED = (
    "share pages (.html), .json, .jsonl, .ndjson, .parquet, each also .gz, .bz2, .xz or .zst, "
    "or archives of them (.zip, .tar, .tar.gz, .tar.bz2, .tar.xz, .tar.zst)"
)

HIDDEN = "hidden"
NOISE = "archive noise"
LINK = "link"
SPECIAL = "special file"
NO_EXTENSION = "no extension"

_PAGE_NAMES = tuple(page + z for page in PAGES for z in COMPRESSIONS)
_MEMBER_NAMES = (*_PAGE_NAMES, *(suffix + z for suffix in RECORDS for z in COMPRESSIONS))
_FILE_NAMES = (*_MEMBER_NAMES, ZIP, *TARS)
_NOISE_NAMES = frozenset({".ds_store", "thumbs.db", "desktop.ini", "__macosx"})
_WORD = r"\.[^.\s/\x00-\x1f\x7f-\x9f]{1,16}"
_EXTENSION = re.compile(rf"(?:{_WORD})?\.(?:gz|bz2|xz|zst)\Z|{_WORD}\Z")


def is_page(name: str) -> bool:
    """Return whether the name is that of a share page, compressed or not."""
    return name.lower().endswith(_PAGE_NAMES)


def is_archive(name: str) -> bool:
    """Return whether the name is that of a zip or tar archive."""
    return name.lower().endswith((ZIP, *TARS))


def is_file_kind(name: str) -> bool:
    """Return whether the name is that of a supported file: a page, records or an archive."""
    return name.lower().endswith(_FILE_NAMES)


def kind_passed_over(path: str, *, member: bool = False) -> str | None:
    """Return the kind under which a path is counted as passed over, or None if it is read.

    The folders in a member's path count as well; for a file only its name counts, since its folders
    were checked before. An archive inside an archive is not opened.
    """
    names = [name for name in path.replace("\\", "/").split("/") if name not in ("", ".", "..")]
    for name in names if member else names[-1:]:
        if name.lower() in _NOISE_NAMES or name.startswith("._"):
            return NOISE
        if name.startswith("."):
            return HIDDEN
    name = names[-1].lower() if names else ""
    if name.endswith(_MEMBER_NAMES if member else _FILE_NAMES):
        return None
    extension = _EXTENSION.search(name)
    return printable(extension[0]) if extension else NO_EXTENSION


def without_compression(name: str) -> str:
    """Return the name in lower case without its last `.gz`, `.bz2`, `.xz` or `.zst`."""
    name = name.lower()
    for suffix in COMPRESSIONS[1:]:
        name = name.removesuffix(suffix) if name.endswith(suffix) else name
    return name


def printable(name: str) -> str:
    """Return a name that UTF-8 can represent: other bytes of a file name become U+FFFD."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def basename(uri: str) -> str:
    """Return a file's name without its folder."""
    return posixpath.basename(uri)
