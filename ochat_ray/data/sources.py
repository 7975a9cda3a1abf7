"""Read conversations from files: share pages, JSON, JSON lines, Parquet, and archives of them.

Files and archives are streamed, with one conversation at a time in memory. Unreadable data is
yielded as a `Drop` and other kinds of files as a `PassedOver`, never raised as an exception; only a
store that does not answer raises.
"""

from __future__ import annotations

import io
import posixpath
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import IO, Any, cast

from ochat_ray.data.archives import Damaged, Entry, Member, Skipped, tar_members, zip_members
from ochat_ray.data.byte_streams import (
    StoreError,
    TooLarge,
    UnreadableFile,
    open_input,
    read_beginning,
    spooled,
    unpacked,
)
from ochat_ray.data.json_records import json_records
from ochat_ray.data.json_values import Broken
from ochat_ray.data.kinds import ZIP, basename, is_archive, is_page, printable, without_compression
from ochat_ray.data.parquet_records import parquet_records
from ochat_ray.data.records import DEFAULTS, ReadOptions, records_of
from ochat_ray.data.share_page import MAX_PAGE_BYTES, Unusable, page_record
from ochat_ray.errors import UserError, first_line
from ochat_ray.schema import Drop, PassedOver, Reason, Record, Stage

MAX_LINE_BYTES = 64 * 2**20
"""Maximum size of one JSON record, in a line or an array."""

_UNPACKED_HERE = (".bz2", ".xz", ".zst")
"""Compressions of pages that are unpacked here; gzip, possible under any name, in the parser."""
_PIECE = 1 << 18
_BUFFER = 1 << 20
"""Bytes per read; from a remote store, each read is a request."""

READ_AHEAD = 16
"""Files fetched concurrently from a remote store, where each costs a round trip."""


def read_files(
    uris: Sequence[str],
    options: ReadOptions = DEFAULTS,
    observe: Callable[[list[bytes | None]], object] = list,
) -> Iterator[Record]:
    """Yield every conversation of the files, in order, and drops and skipped files.

    Args:
        uris: The files; several are share pages, 64 MiB in total.
        options: User options for reading.
        observe: Called with the bytes of several pages, in order, before the first record is
            yielded;
            None for a page that cannot be read or is too large.
    """
    if len(uris) == 1:
        yield from read_file(uris[0], options)
        return
    if any("://" in uri for uri in uris):
        with ThreadPoolExecutor(READ_AHEAD) as pool:
            pages = list(pool.map(_fetch_file, uris))
    else:
        pages = [_fetch_file(uri) for uri in uris]
    observe([p if isinstance(p, bytes) and len(p) <= MAX_PAGE_BYTES else None for p in pages])
    pages.reverse()  # each page's bytes are freed once it is read
    for uri in uris:
        yield from _Reader(printable(uri), options).page(_unpack_file(uri, pages.pop()))


def read_file(uri: str, options: ReadOptions = DEFAULTS) -> Iterator[Record]:
    """Yield every conversation of one file, and a `Drop` or `PassedOver` for all other content.

    Raises:
        OSError, or another exception of the store's client: The store does not answer.
    """
    reader = _Reader(printable(uri), options)
    if is_page(uri):
        yield from reader.page(_unpack_file(uri, _fetch_file(uri)))
        return
    try:
        with open_input(uri) as raw:
            stream = io.BufferedReader(raw, _BUFFER)
            if _is_lfs_pointer(stream, raw.size):
                yield reader.drop(
                    Reason.UNREADABLE, "a Git LFS pointer; git lfs pull gets the file"
                )
            elif is_archive(uri):
                yield from reader.archive(stream, raw.size)
            else:
                yield from reader.records(stream, uri, raw.size)
    except UnreadableFile as error:
        yield reader.drop(Reason.UNREADABLE, str(error))
    except StoreError as error:
        raise error.__cause__ or error from None


def _is_lfs_pointer(stream: io.BufferedReader[Any], size: int) -> bool:
    return size < 1024 and stream.peek(64).startswith(b"version https://git-lfs.github.com/spec/")


def _fetch_file(uri: str) -> bytes | Unusable:
    """Return the raw bytes of a page's file, up to one byte more than the maximum."""
    try:
        return read_beginning(uri, MAX_PAGE_BYTES + 1)
    except UnreadableFile as error:
        return Unusable(Reason.UNREADABLE, str(error))
    except StoreError as error:
        raise error.__cause__ or error from None


def _unpack_file(uri: str, page: bytes | Unusable) -> bytes | Unusable:
    if isinstance(page, Unusable) or not uri.lower().endswith(_UNPACKED_HERE):
        return page
    return _unpack_page(cast(IO[bytes], io.BytesIO(page)), len(page))


def _member_page(entry: Member) -> bytes | Unusable:
    """Return the bytes of a page in an archive, which must not be truncated or damaged."""
    if entry.name.lower().endswith(_UNPACKED_HERE):
        return _unpack_page(entry.stream, entry.packed_size)
    return _whole_page(entry.stream)


def _unpack_page(stream: IO[bytes], packed_size: int) -> bytes | Unusable:
    try:
        whole, _ = unpacked(stream, packed_size)
    except StoreError:
        raise
    except Exception as error:  # noqa: BLE001 (each decoder has its own; none may end the job)
        return Unusable(_reason(error), first_line(error))
    return _whole_page(whole)


def _whole_page(stream: IO[bytes]) -> bytes | Unusable:
    pieces: list[bytes] = []
    left = MAX_PAGE_BYTES + 1
    try:
        while left > 0 and (piece := stream.read(min(left, _PIECE))):
            pieces.append(piece)
            left -= len(piece)
    except StoreError:
        raise
    except Exception as error:  # noqa: BLE001 (as above)
        return Unusable(_reason(error), first_line(error))
    return b"".join(pieces)


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reader of one file or archive member; `source` is its name in the records."""

    source: str
    options: ReadOptions

    def drop(self, reason: Reason, detail: str, place: str = "") -> Drop:
        name = basename(self.source) + place
        # Names and texts from damaged files may contain unpaired surrogates.
        detail = detail.encode("utf-8", "replace").decode()
        return Drop(id=name, source=self.source, stage=Stage.READ, reason=reason, detail=detail)

    def page(self, page: bytes | Unusable) -> Iterator[Record]:
        record = page if isinstance(page, Unusable) else page_record(page)
        stem = posixpath.basename(self.source).split(".")[0]
        if isinstance(record, Unusable):
            yield replace(self.drop(record.reason, record.detail), id=stem)
            return
        record["id"] = record["id"] or stem
        yield from self._conversations(record, 0, page=True)

    def archive(self, stream: IO[bytes], size: int) -> Iterator[Record]:
        """Yield the records of an archive's members; a `Drop` if the archive cannot be opened."""
        empty = True
        try:
            if self.source.lower().endswith(ZIP):
                entries: Iterator[Entry] = zip_members(stream)
            else:
                whole, _ = unpacked(stream, size)
                entries = tar_members(whole)
            for entry in entries:
                yield from self._member(entry)
                empty = False
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001 (each decoder has its own; none may end the job)
            yield self.drop(_reason(error, Reason.TORN), first_line(error))
        else:
            if empty:
                yield self.drop(Reason.NO_DATA, "an archive without a file in it")

    def _member(self, entry: Entry) -> Iterator[Record]:
        if isinstance(entry, Damaged) and entry.name is None:
            yield self.drop(Reason.TORN, entry.detail)
            return
        member = _Reader(f"{self.source}!{entry.name}", self.options)
        if isinstance(entry, Damaged):
            yield member.drop(Reason.UNREADABLE, entry.detail)
        elif isinstance(entry, Skipped):
            yield PassedOver(source=member.source, kind=entry.kind)
        elif is_page(entry.name):
            yield from member.page(_member_page(entry))
        else:
            yield from member.records(entry.stream, entry.name, entry.packed_size)

    def records(self, stream: IO[bytes], name: str, packed_size: int) -> Iterator[Record]:
        """Yield the records of JSON, JSON lines or Parquet."""
        index = 0
        try:
            for item in _items(stream, without_compression(name), packed_size):
                if isinstance(item, Broken):
                    yield self.drop(item.reason, item.detail, item.place)
                else:
                    yield from self._conversations(item, index)
                index += 1
        except StoreError:
            raise
        # Last safeguard: no input may end the job, whatever its decoder raises.
        except Exception as error:  # noqa: BLE001
            detail = f"after {index:,} records: {first_line(error)}"
            if not isinstance(error, (EOFError, TooLarge)):
                detail += f" ({type(error).__name__})"
            yield self.drop(_reason(error), detail, f"#{index}")
        else:
            if index == 0:
                yield self.drop(Reason.NO_DATA, "a file without a record in it")

    def _conversations(self, item: Any, index: int, *, page: bool = False) -> Iterator[Record]:
        records = records_of(item, source=self.source, index=index, options=self.options, page=page)
        try:
            yield from records
        except UserError:
            raise
        # As above, but only this record is lost.
        except Exception as error:  # noqa: BLE001
            detail = f"{first_line(error)} ({type(error).__name__})"
            yield self.drop(Reason.MALFORMED, detail, f"#{index}")


def _items(stream: IO[bytes], name: str, packed_size: int) -> Iterable[Any]:
    if not name.endswith(".parquet"):
        whole, _ = unpacked(stream, packed_size)
        by_lines = any(suffix in basename(name) for suffix in (".jsonl", ".ndjson"))
        return json_records(whole, by_lines=by_lines, max_size=MAX_LINE_BYTES)
    if isinstance(stream, io.BufferedReader) and stream.peek(4).startswith(b"PAR1"):
        stream.raw.seek(0)
        return parquet_records(cast(IO[bytes], stream.raw))  # it chooses its own read sizes
    whole, _ = unpacked(stream, packed_size)
    return parquet_records(spooled(whole))


def _reason(error: Exception, otherwise: Reason = Reason.UNREADABLE) -> Reason:
    if isinstance(error, TooLarge):
        return Reason.TOO_LARGE
    return Reason.TORN if isinstance(error, EOFError) else otherwise
