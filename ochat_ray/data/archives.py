"""Read the members of zip and tar archives as streams, one at a time."""

from __future__ import annotations

import io
import struct
import tarfile
import zipfile
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import IO, Any, cast

from ochat_ray.data.byte_streams import ByteStream, StoreError, TooLarge, read_exactly
from ochat_ray.data.kinds import LINK, SPECIAL, kind_passed_over
from ochat_ray.errors import first_line

MAX_HEADER_BYTES = 2**20
"""Limit on a tar member's extended headers, which tarfile reads into memory."""

_SKIP = 1 << 20
_BLOCK = tarfile.BLOCKSIZE
_LOCAL_HEADER = 30
"""Size of a zip member's local header before its name, in bytes."""


@dataclass(frozen=True, slots=True)
class Member:
    """Member to read before the next one is requested; `packed_size` is its compressed size."""

    name: str
    stream: IO[bytes]
    packed_size: int


@dataclass(frozen=True, slots=True)
class Skipped:
    """Member that is not read because of its kind."""

    name: str
    kind: str


@dataclass(frozen=True, slots=True)
class Damaged:
    """Member that cannot be read or, without a name, the unreadable rest of the archive."""

    name: str | None
    detail: str


Entry = Member | Skipped | Damaged


def tar_members(stream: IO[bytes]) -> Iterator[Entry]:
    """Yield the members of an unpacked tar archive, and of further archives in the same file.

    If the archive is damaged or truncated, all intact members before that point are yielded.
    """
    guard = _TarStream(stream)
    members = 0
    try:
        while (header := guard.next_archive()) is not None:
            if not _is_header(header):
                yield Damaged(None, f"{guard.skip_all() + _BLOCK:,} bytes are not a tar archive")
                return
            with closing(tarfile.TarFile(fileobj=cast(Any, guard), errors="replace")) as archive:
                while (info := archive.next()) is not None:
                    members += 1
                    # tarfile keeps all members and all global headers.
                    archive.members.clear()  # type: ignore[attr-defined]
                    archive.pax_headers.clear()  # type: ignore[attr-defined]
                    yield from _tar_entry(guard, info)
                    if guard.failed:  # inside a member, whose reader reports the error
                        return
                    guard.begin_header()
    except (StoreError, TooLarge):
        raise
    # Damaged headers make tarfile raise many exception types besides its own.
    except Exception as error:  # noqa: BLE001
        yield Damaged(None, f"after {members:,} members: {first_line(error)}")


def _tar_entry(guard: _TarStream, info: tarfile.TarInfo) -> Iterator[Entry]:
    name = info.name.encode("utf-8", "replace").decode()
    if info.size < 0:  # by a pax header
        raise tarfile.HeaderError(f"{name} has the size {info.size}")
    if info.isdir():
        return
    kind = kind_passed_over(name, member=True)
    if info.issym() or info.islnk():
        kind = kind if kind is not None and kind.startswith(("hidden", "archive")) else LINK
    elif not info.isreg():
        kind = SPECIAL
    if kind is not None:
        yield Skipped(name, kind)
    elif info.issparse():
        yield Damaged(name, "a sparse file")
    else:
        guard.seek(info.offset_data)
        stream = _TarMember(guard, info.size)
        yield Member(name, cast(IO[bytes], stream), info.size)


def _is_header(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError):
        return False
    return True


class _TarStream:
    """Forward-only stream with the file operations that tarfile uses.

    Data that tarfile itself reads between two members is bounded by MAX_HEADER_BYTES.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._place = 0
        self._ahead = b""
        self._header_bytes = 0
        self.failed = False

    def next_archive(self) -> bytes | None:
        """Skip the zeros after an archive; return the next block without consuming it, or None."""
        while block := self.read_member(_BLOCK):
            if block.strip(b"\x00"):
                self._ahead = block
                self._place -= len(block)
                self.begin_header()
                return block
        return None

    def begin_header(self) -> None:
        """Allow tarfile to read MAX_HEADER_BYTES from this position."""
        self._header_bytes = 0

    def read(self, size: int) -> bytes:
        """Read header bytes for tarfile."""
        self._header_bytes += size
        if self._header_bytes > MAX_HEADER_BYTES:
            raise tarfile.HeaderError(f"a member's headers have over {MAX_HEADER_BYTES:,} bytes")
        return self.read_member(size)

    def read_member(self, size: int) -> bytes:
        """Read any number of bytes of a member."""
        data = self._ahead[:size]
        self._ahead = self._ahead[size:]
        if len(data) < size:
            data += read_exactly(self._stream, size - len(data))
        self._place += len(data)
        return data

    def tell(self) -> int:
        """Return the position in the unpacked stream."""
        return self._place

    def seek(self, place: int) -> None:
        """Seek forward by reading, at most to the end of the stream."""
        if place < self._place:
            raise tarfile.ReadError("a header that leads backwards")
        while self._place < place:
            if not self.read_member(min(_SKIP, place - self._place)):
                return

    def skip_all(self) -> int:
        """Read to the end; return the number of bytes after the next block."""
        start = self._place + _BLOCK
        while self.read_member(_SKIP):
            pass
        return max(0, self._place - start)


class _TarMember(ByteStream):
    def __init__(self, guard: _TarStream, size: int) -> None:
        self._guard = guard
        self._left = size

    def read_some(self, size: int) -> bytes:
        if not self._left:
            return b""
        self._guard.failed = True
        data = self._guard.read_member(min(size, self._left))
        if not data:
            raise EOFError("the archive ends in the middle of this member")
        self._guard.failed = False
        self._left -= len(data)
        return data


def zip_members(stream: IO[bytes]) -> Iterator[Entry]:
    """Yield the members of a zip archive; a damaged member does not affect others."""
    names_not_utf8 = _FlagsCleared(stream)
    with zipfile.ZipFile(cast(IO[bytes], names_not_utf8)) as archive:
        overlapping = _overlapping(archive.infolist())
        for info in archive.infolist():
            if info.is_dir():
                continue
            name = info.filename
            if info.header_offset in names_not_utf8.members:
                name = info.orig_filename.encode("cp437").decode("utf-8", "replace")
            name = name.encode("utf-8", "replace").decode()
            kind = kind_passed_over(name, member=True)
            if info.create_system == 3 and info.external_attr >> 28 == 0o12:  # Unix's links
                kind = LINK
            if kind is not None:
                yield Skipped(name, kind)
                continue
            if id(info) in overlapping:
                yield Damaged(name, "its data are another member's, too")
                continue
            try:
                member = archive.open(info)
            except StoreError:
                raise
            # Encrypted, an unknown method, a missing or different local header...
            except Exception as error:  # noqa: BLE001
                yield Damaged(name, first_line(error))
                continue
            with member:
                yield Member(name, member, info.compress_size)


def _overlapping(members: Iterable[zipfile.ZipInfo]) -> set[int]:
    """Return the ids of members whose data overlaps that of the next member.

    Such an archive unpacks a few bytes arbitrarily often (zip bomb); zipfile rejects it since
    3.11.8 (https://github.com/python/cpython/issues/109858).
    """
    found: set[int] = set()
    following: int | None = None
    for info in sorted(members, key=lambda info: info.header_offset, reverse=True):
        end = info.header_offset + _LOCAL_HEADER + info.compress_size
        if following is not None and end > following:
            found.add(id(info))
        following = info.header_offset
    return found


class _FlagsCleared(ByteStream):
    """Zip file in which some member names are not in the encoding given by their flag.

    zipfile (https://github.com/python/cpython/issues/153426) opens no archive with a name that is
    flagged as UTF-8 and is not valid UTF-8. Here the flags of such names read as cleared. `members`
    are the offsets of their local headers.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._cleared: dict[int, int] = {}
        self._places: list[int] = []
        self.members: set[int] = set()
        self._find()
        self._places = sorted(self._cleared)
        stream.seek(0)

    def _find(self) -> None:
        """Find such names in the central directory; archives beyond 4 GiB are not examined."""
        size = self._stream.seek(0, io.SEEK_END)
        tail_at = max(0, size - (1 << 16) - 22)
        self._stream.seek(tail_at)
        tail = read_exactly(self._stream, size - tail_at)
        end = tail.rfind(b"PK\x05\x06")
        if end < 0 or len(tail) < end + 22:
            return
        length, offset = struct.unpack_from("<II", tail, end + 12)
        start = tail_at + end - length
        if start < 0 or 0xFFFFFFFF in (length, offset):
            return
        before = start - offset  # bytes before the archive
        self._stream.seek(start)
        directory = read_exactly(self._stream, length)
        at = 0
        while directory.startswith(b"PK\x01\x02", at) and at + 46 <= len(directory):
            flags = directory[at + 9]
            name, extra, comment = struct.unpack_from("<HHH", directory, at + 28)
            (local,) = struct.unpack_from("<I", directory, at + 42)
            if flags & 0x08 and not _is_utf8(directory[at + 46 : at + 46 + name]):
                self._cleared[start + at + 9] = flags & ~0x08
                self._stream.seek(local + before + 7)
                in_local = read_exactly(self._stream, 1)
                if in_local:
                    self._cleared[local + before + 7] = in_local[0] & ~0x08
                self.members.add(local + before)
            at += 46 + name + extra + comment

    def seekable(self) -> bool:
        return True

    def read_some(self, size: int) -> bytes:
        at = self._stream.tell() if self._places else 0
        data = self._stream.read(size)
        first, end = bisect_left(self._places, at), bisect_left(self._places, at + len(data))
        if first == end:
            return data
        cleared = bytearray(data)
        for place in self._places[first:end]:
            cleared[place - at] = self._cleared[place]
        return bytes(cleared)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True
