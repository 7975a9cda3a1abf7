"""Content digests of the input files, independent of their names.

A run is identified by the content that it reads. A folder that was moved or renamed is the same
input; a file of the same name, size and time with other bytes is a different one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from ochat_ray.data.inputs import InputFile
from ochat_ray.data.kinds import printable
from ochat_ray.run_dir import open_location

LISTED_FILES = 100
"""Maximum number of input files that a manifest lists by name."""

UNREADABLE = "unreadable"
"""Digest of a file that may not be read or no longer exists; its pages are dropped."""

READERS = 16
"""Files read concurrently, since each costs a round trip to a remote store."""

BATCH = 64
"""Local files per thread task."""

_CHUNK = 4 * 2**20


def content_digest(uri: str) -> str:
    """Return the SHA-256 of a file's bytes as stored, compressed or not; or UNREADABLE."""
    state = hashlib.sha256()
    try:
        if "://" not in uri:  # for a small file faster than through Arrow
            with open(uri, "rb", buffering=0) as raw:
                while chunk := raw.read(_CHUNK):
                    state.update(chunk)
        else:
            fs, path = open_location(uri)
            with fs.open_input_stream(path, compression=None) as stream:
                while chunk := stream.read(_CHUNK):
                    state.update(chunk)
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        return UNREADABLE
    return state.hexdigest()


def content_digests(uris: Sequence[str]) -> list[str]:
    """Return the `content_digest` of each file, in order, reading several files concurrently."""
    # Reading a small local file takes less time than passing it to a thread.
    size = 1 if any("://" in uri for uri in uris) else BATCH
    batches = [uris[start : start + size] for start in range(0, len(uris), size)]
    with ThreadPoolExecutor(READERS) as pool:
        return [digest for batch in pool.map(_digests, batches) for digest in batch]


def digests_of_pages(uris: Sequence[str], pages: Sequence[bytes | None]) -> list[str]:
    """Return the `content_digest` of files; those whose bytes are None are read here."""
    return [
        content_digest(uri) if page is None else hashlib.sha256(page).hexdigest()
        for uri, page in zip(uris, pages, strict=True)
    ]


def _digests(uris: Sequence[str]) -> list[str]:
    return [content_digest(uri) for uri in uris]


@dataclass
class Content:
    """Sums over files that do not depend on names or order."""

    files: int = 0
    bytes: int = 0
    _digests: int = 0
    _names: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, files: Iterable[InputFile]) -> Content:
        """Read all the files."""
        content = cls()
        files = iter(files)
        while window := list(islice(files, READERS * BATCH)):
            content.add(window, content_digests([file.uri for file in window]))
        return content

    def add(self, files: Sequence[InputFile], digests: Sequence[str]) -> None:
        """Add files by the digests of their bytes."""
        for file, digest in zip(files, digests, strict=True):
            self.files += 1
            self.bytes += file.size
            # Hashed again, so that file digests cannot be chosen to produce a given sum.
            self._digests += int.from_bytes(hashlib.sha256(digest.encode()).digest(), "little")
            if self.files <= LISTED_FILES + 1:
                self._names.append(
                    {"path": printable(file.uri), "bytes": file.size, "sha256": digest}
                )

    def identity(self) -> dict[str, Any]:
        """Return number, bytes and digest of the files."""
        digest = f"{self._digests % 2**256:064x}"
        return {"files": self.files, "bytes": self.bytes, "digest": digest}

    def described(self) -> Any:
        """Return the files by name if there are few, otherwise `identity`."""
        return self._names if self.files <= LISTED_FILES else self.identity()


@dataclass(frozen=True, slots=True)
class Changes:
    """Differences between two listings of the inputs, by name, size and time."""

    changed: tuple[str, ...]
    gone: tuple[str, ...]
    new: tuple[str, ...]


def changes(before: Iterable[InputFile], after: Iterable[InputFile]) -> Changes:
    """Compare two listings of the same inputs."""
    known: Mapping[str, InputFile] = {file.uri: file for file in before}
    changed, new, seen = [], [], set()
    for file in after:
        if file.uri not in known:
            new.append(file.uri)
            continue
        seen.add(file.uri)
        if file != known[file.uri]:
            changed.append(file.uri)
    gone = [uri for uri in known if uri not in seen]
    return Changes(tuple(changed), tuple(gone), tuple(new))
