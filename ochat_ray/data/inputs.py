"""Which files a run reads, and in what portions: paths, folders, globs, local or remote.

Folders are listed one directory at a time, so the driver's memory does not grow with the number
of files; small files are grouped, so that none costs a task of its own.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from pyarrow import fs as pafs

from ochat_ray.errors import UserError
from ochat_ray.run_dir import open_location

PAGES = (".html", ".htm")
RECORDS = (".json", ".jsonl", ".ndjson", ".parquet")
ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")
COMPRESSIONS = ("", ".gz", ".bz2", ".zst")

GROUP_FILES = 1000
GROUP_BYTES = 64 * 2**20

_PAGE_NAMES = tuple(suffix + z for suffix in PAGES for z in ("", ".gz"))
_READABLE = (
    *_PAGE_NAMES,
    *(suffix + z for suffix in RECORDS for z in COMPRESSIONS),
    *ARCHIVES,
)
_KINDS = "share pages (.html), .json, .jsonl, .parquet, or archives (.tar, .tar.gz, .zip)"


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file to read: its path or URI, its size in bytes, and when it was last changed."""

    uri: str
    size: int
    mtime_ns: int = 0


def is_page(name: str) -> bool:
    """Whether a file's name says that it is one share page."""
    return name.lower().endswith(_PAGE_NAMES)


def find_files(inputs: Sequence[str]) -> Iterator[InputFile]:
    """The files to read of paths, globs or URIs of files and folders, in a fixed order.

    A file that is named twice, as by its folder and itself, comes once. What a folder holds of
    other kinds is passed over.

    Raises:
        UserError: an input does not exist, is of a kind that is not read, or holds no such file.
    """
    roots = sorted({_normal(uri) for uri in inputs})
    for number, uri in enumerate(roots):
        others = roots[:number]
        found = False
        for file in _files_of(uri):
            found = True
            if not any(_is_below(file.uri, other) for other in others):
                yield file
        if not found:
            raise UserError(f"input {uri} holds no file to read: {_KINDS}")


def check_inputs(inputs: Sequence[str]) -> None:
    """Raise what `find_files` would, without listing all the files."""
    for uri in inputs:
        next(find_files([uri]))


def groups(files: Iterable[InputFile]) -> Iterator[list[InputFile]]:
    """The files in portions of one task: many pages, or one file of many conversations."""
    pages: list[InputFile] = []
    size = 0
    for file in files:
        if not is_page(file.uri):
            yield [file]
            continue
        if pages and (len(pages) == GROUP_FILES or size + file.size > GROUP_BYTES):
            yield pages
            pages, size = [], 0
        pages.append(file)
        size += file.size
    if pages:
        yield pages


class Listing:
    """Counts files as they are listed."""

    def __init__(self) -> None:
        self.count = self._stamps = 0

    @classmethod
    def of(cls, files: Iterable[InputFile]) -> Listing:
        """A listing of all the files."""
        listing = cls()
        for _ in listing.groups(files):
            pass
        return listing

    def groups(self, files: Iterable[InputFile]) -> Iterator[list[InputFile]]:
        """`groups`, counted as they pass."""
        for group in groups(files):
            self.count += 1
            for file in group:
                text = f"{file.size}:{file.mtime_ns}:{file.uri}"
                state = hashlib.sha256(text.encode(errors="surrogateescape"))
                self._stamps += int.from_bytes(state.digest(), "little")
            yield group

    @property
    def stamp(self) -> str:
        """A digest of names, sizes and times: another one where a file has been changed.

        It does not depend on the order. An equal one does not prove equal content.
        """
        return f"{self._stamps % 2**256:064x}"


def _normal(uri: str) -> str:
    return uri.rstrip("/") if "://" in uri else open_location(uri)[1]


def _is_below(uri: str, other: str) -> bool:
    if "*" in other or "?" in other:
        return bool(_glob(other).fullmatch(uri))
    return uri == other or uri.startswith(other + "/")


def _files_of(uri: str) -> Iterator[InputFile]:
    if "*" in uri or "?" in uri:
        pattern = _glob(uri)
        base = re.split(r"/[^/]*[*?]", uri, maxsplit=1)[0]
        yield from (file for file in _folder(base) if pattern.fullmatch(file.uri))
        return
    fs, path = open_location(uri)
    info = fs.get_file_info(path)
    if info.type == pafs.FileType.NotFound:
        raise UserError(f"input {uri} does not exist; give --input a file, a folder or a glob")
    if info.type == pafs.FileType.File:
        if not path.lower().endswith(_READABLE):
            raise UserError(f"input {uri} is of a kind that is not read; expected {_KINDS}")
        yield InputFile(uri, info.size, info.mtime_ns or 0)
    else:
        yield from _folder(uri)


def _folder(uri: str, above: tuple[str, ...] = ()) -> Iterator[InputFile]:
    """The files below a folder; `above` are the folders it was reached through."""
    fs, path = open_location(uri)
    real = uri if "://" in uri else os.path.realpath(path)
    if real in above:  # a link back up
        return
    prefix = uri.split("://")[0] + "://" if "://" in uri else ""
    entries = fs.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    for entry in sorted(entries, key=lambda entry: str(entry.path)):
        if entry.base_name.startswith("."):
            continue
        if entry.type == pafs.FileType.Directory:
            yield from _folder(prefix + entry.path, (*above, real))
        elif entry.type == pafs.FileType.File and entry.base_name.lower().endswith(_READABLE):
            yield InputFile(prefix + entry.path, entry.size, entry.mtime_ns or 0)


def _glob(uri: str) -> re.Pattern[str]:
    """`*` and `?` within a name; `**/` is any number of folders."""
    parts = []
    for piece in re.split(r"(\*\*/|\*|\?)", uri):
        parts.append({"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}.get(piece) or re.escape(piece))
    return re.compile("".join(parts))


def basename(uri: str) -> str:
    """A file's name, without its folder."""
    return posixpath.basename(uri)
