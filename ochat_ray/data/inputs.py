"""List the files that a run reads, and group them: paths, folders, globs, local or remote.

Folders are listed one directory at a time, so the driver's memory does not grow with the number of
files; small files are grouped, so that none needs a separate task.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

from pyarrow import fs as pafs

from ochat_ray.data.kinds import (
    EXPECTED,
    HIDDEN,
    LINK,
    NOISE,
    SPECIAL,
    basename,
    is_file_kind,
    is_page,
    kind_passed_over,
)
from ochat_ray.data.output import REPORT, TABLES
from ochat_ray.errors import UserError, first_line
from ochat_ray.locations import real_location
from ochat_ray.lock_claims import RUN_FOLDER
from ochat_ray.run_dir import MANIFEST, open_location
from ochat_ray.schema import PassedOver

MAX_KINDS = 1000
"""Maximum kinds of skipped files that are counted by name."""

GROUP_FILES = 1000
GROUP_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class InputFile:
    """Input file: its path or URI, size in bytes, and modification time."""

    uri: str
    size: int
    mtime_ns: int = 0


def find_files(
    inputs: Sequence[str], passed_over: Counter[str] | None = None
) -> Iterator[InputFile]:
    """Yield the files to read from paths, globs or URIs of files and folders, in a fixed order.

    A file that is named twice, for example directly and by its folder, is yielded once. Files of
    other kinds, and hidden folders, are counted in `passed_over` by kind.

    Raises:
        UserError: An input does not exist, is of an unsupported kind, or contains no such file.
    """
    counts: Counter[str] = Counter() if passed_over is None else passed_over
    roots = sorted({_normal(uri) for uri in inputs})
    for number, uri in enumerate(roots):
        others = roots[:number]
        found = False
        there: Counter[str] = Counter()
        for file in _files_of(uri):
            path = file.uri if isinstance(file, InputFile) else file.source
            is_new = not any(_is_below(path, other) for other in others)
            if isinstance(file, PassedOver):
                there[file.kind] += 1
                if is_new:
                    known = file.kind in counts or len(counts) < MAX_KINDS
                    counts[file.kind if known else "other kinds"] += 1
                continue
            found = True
            if is_new:
                yield file
        if not found:
            kinds = ", ".join(f"{kind} {n:,}" for kind, n in there.most_common(5))
            also = f" (passed over: {kinds})" if kinds else ""
            raise UserError(f"input {uri} holds no file to read{also}; expected {EXPECTED}")


def check_inputs(inputs: Sequence[str]) -> None:
    """Raise the errors of `find_files` without listing all the files."""
    for uri in inputs:
        next(find_files([uri]))


def check_apart(inputs: Sequence[str], output: str) -> None:
    """Reject inputs that contain the output directory: the run would read or delete its own tables.

    Raises:
        UserError: An input is, contains or matches a location of the output files.
    """
    out = _real(output)
    folders = [f"{out}/{name}" for name in (*TABLES, RUN_FOLDER)]
    files = [f"{out}/{name}" for name in (MANIFEST, REPORT)]
    written = [*files, *(f"{folder}/00000.parquet" for folder in folders)]
    for uri in inputs:
        root = _real(uri)
        if any(_is_below(name, root) for name in written) or any(
            _is_below(_base(root), folder) for folder in folders
        ):
            raise UserError(
                f"--output {output} lies in what --input {uri} reads, so a run would read its own "
                "tables; choose another --output"
            )


def groups(files: Iterable[InputFile]) -> Iterator[list[InputFile]]:
    """Yield the files in groups, one per task: many pages, or one file of many conversations."""
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
    """Counter of files while they are listed."""

    def __init__(self) -> None:
        self.count = self._stamps = 0

    @classmethod
    def of(cls, files: Iterable[InputFile]) -> Listing:
        """List and count all the files."""
        listing = cls()
        for _ in listing.groups(files):
            pass
        return listing

    def groups(self, files: Iterable[InputFile]) -> Iterator[list[InputFile]]:
        """Yield the `groups` of the files, counting them on the way."""
        for group in groups(files):
            self.count += 1
            for file in group:
                text = f"{file.size}:{file.mtime_ns}:{file.uri}"
                state = hashlib.sha256(text.encode(errors="surrogateescape"))
                self._stamps += int.from_bytes(state.digest(), "little")
            yield group

    @property
    def stamp(self) -> str:
        """Digest of names, sizes and times, which differs if a file was changed.

        It does not depend on the order. Equal stamps do not prove equal content.
        """
        return f"{self._stamps % 2**256:064x}"


def _normal(uri: str) -> str:
    return uri.rstrip("/") if "://" in uri else open_location(uri)[1]


def _real(uri: str) -> str:
    """Return a path or URI with links resolved, so that two names of one location are equal."""
    full = _normal(uri.removeprefix("file://"))
    base = _base(full)
    return real_location(base) + full.removeprefix(base)


def _base(uri: str) -> str:
    """Return the folder in which a glob is searched; other inputs unchanged."""
    return re.split(r"/[^/]*[*?]", uri, maxsplit=1)[0]


def _is_below(uri: str, other: str) -> bool:
    if "*" in other or "?" in other:
        return bool(_glob(other).fullmatch(uri))
    return uri == other or uri.startswith(other + "/")


def _files_of(uri: str) -> Iterator[InputFile | PassedOver]:
    if "*" in uri or "?" in uri:
        pattern = _glob(uri)
        for file in _folder(_base(uri)):
            path = file.uri if isinstance(file, InputFile) else file.source
            if pattern.fullmatch(path):
                yield file
        return
    entry = _entry(uri)
    if entry.type == pafs.FileType.NotFound:
        raise UserError(f"input {uri} does not exist; give --input a file, a folder or a glob")
    if entry.type == pafs.FileType.Directory:
        yield from _folder(uri)
    elif entry.type != pafs.FileType.File:
        raise UserError(f"input {uri} is not a regular file; give --input a file or a folder")
    elif not is_file_kind(uri):
        raise UserError(f"input {uri} is of a kind that is not read; expected {EXPECTED}")
    else:
        yield InputFile(uri, entry.size, entry.mtime_ns)


def _folder(uri: str, above: tuple[str, ...] = ()) -> Iterator[InputFile | PassedOver]:
    """Yield the files below a folder; `above` holds its ancestors, to detect cycles of links."""
    real = uri if "://" in uri else os.path.realpath(uri)
    if real in above:  # a link to an ancestor
        yield PassedOver(source=uri, kind=LINK)
        return
    try:
        entries = _remote_entries(uri) if "://" in uri else _local_entries(uri)
    except PermissionError:
        yield InputFile(uri, 0)  # reading it drops it, with the reason
        return
    for entry in sorted(entries, key=lambda entry: entry.uri):
        name = basename(entry.uri)
        hidden = kind_passed_over(name)
        if entry.type == pafs.FileType.Directory:
            if hidden in (HIDDEN, NOISE):
                yield PassedOver(source=entry.uri, kind=hidden)
            else:
                yield from _folder(entry.uri, (*above, real))
        elif hidden is not None:
            yield PassedOver(source=entry.uri, kind=hidden)
        elif entry.type == pafs.FileType.File:
            yield InputFile(entry.uri, entry.size, entry.mtime_ns)
        else:
            # A broken link; a FIFO, a socket, a device.
            broken = entry.type == pafs.FileType.NotFound
            yield PassedOver(source=entry.uri, kind=LINK if broken else SPECIAL)


@dataclass(frozen=True, slots=True)
class _Entry:
    uri: str
    type: pafs.FileType
    size: int = 0
    mtime_ns: int = 0


def _entry(uri: str) -> _Entry:
    if "://" not in uri:
        return _local_entry(uri)
    fs, path = open_location(uri)
    with _hub_errors(uri):
        info = fs.get_file_info(path)
    return _remote_entry(uri, info)


def _remote_entries(uri: str) -> list[_Entry]:
    fs, path = open_location(uri)
    prefix = uri.split("://")[0] + "://"
    with _hub_errors(uri):
        infos = fs.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    return [_remote_entry(prefix + info.path, info) for info in infos]


def _remote_entry(uri: str, info: pafs.FileInfo) -> _Entry:
    return _Entry(uri, info.type, info.size or 0, info.mtime_ns or 0)


@contextmanager
def _hub_errors(uri: str) -> Iterator[None]:
    """Raise a UserError if the Hugging Face Hub does not answer or refuses access."""
    if not uri.startswith("hf://"):
        yield
        return
    try:
        yield
    except UserError:
        raise
    # The Hub's client raises errors of its HTTP library, which differs between its versions.
    except Exception as error:
        raise UserError(
            f"cannot list {uri}: {first_line(error)}; check the name, the network and, for a gated "
            "or private dataset, HF_TOKEN"
        ) from error


def _local_entries(uri: str) -> list[_Entry]:
    """List a local folder; unlike Arrow, this supports names that are not UTF-8."""
    try:
        with os.scandir(uri) as entries:
            return [_local_entry(entry.path) for entry in entries]
    except FileNotFoundError:
        return []


def _local_entry(path: str) -> _Entry:
    try:
        status = os.stat(path)
    except OSError:  # missing, or a cycle of links
        return _Entry(path, pafs.FileType.NotFound)
    if stat.S_ISDIR(status.st_mode):
        return _Entry(path, pafs.FileType.Directory)
    if stat.S_ISREG(status.st_mode):
        return _Entry(path, pafs.FileType.File, status.st_size, status.st_mtime_ns)
    return _Entry(path, pafs.FileType.Unknown)


@cache  # asked for each file
def _glob(uri: str) -> re.Pattern[str]:
    """Compile a glob: `*` and `?` match within a name; `**/` matches any number of folders."""
    parts = []
    for piece in re.split(r"(\*\*/|\*|\?)", uri):
        parts.append({"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}.get(piece) or re.escape(piece))
    return re.compile("".join(parts))
