"""Byte streams for inputs: files of a store, and bounded decompression.

Errors of the store and errors of the data are distinguished here: a store's error is raised as
`StoreError`, so any other exception of a decoder is a fault of the data.
"""

from __future__ import annotations

import bz2
import errno
import io
import lzma
import os
import stat
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any, Protocol, cast

import pyarrow as pa

from ochat_ray.errors import first_line
from ochat_ray.run_dir import open_location

UNPACKED_FREELY = 2**30
MAX_RATIO = 1000
"""Maximum decompression ratio beyond UNPACKED_FREELY bytes."""

XZ_MEMORY = 256 * 2**20
"""Maximum memory for the dictionary of an .xz file; `xz -9` needs 65 MiB."""

SPOOL_MEMORY = 64 * 2**20
MAX_SPOOL_BYTES = 4 * 2**30
"""Maximum bytes of a Parquet file that are unpacked to disk, since it needs random access."""

_CHUNK = 1 << 18
_PIECE = 1 << 16
_PACKED_CHUNK = 1 << 14
"""Bytes decompressed at a time; each zlib call copies its unconsumed input."""
_OF_THE_FILE = (errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL, errno.ENXIO)


class StoreError(Exception):
    """Failure of the file system, not of the data; `__cause__` is the original error."""


class TooLarge(Exception):  # noqa: N818 (a verdict on the data, as `Reason.TOO_LARGE`)
    """Data that unpacks to more than the limit."""


class UnreadableFile(Exception):  # noqa: N818
    """File that is missing, not accessible, or not a regular file."""


class ByteStream(io.RawIOBase):
    """Raw stream implemented by `read_some`."""

    def read_some(self, size: int) -> bytes:
        """Read up to `size` bytes; at least one, except at the end."""
        raise NotImplementedError

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        data = self.read_some(len(view)) if len(view) else b""
        view[: len(data)] = data
        return len(data)


class InputStream(ByteStream):
    """Open file of a store, whose own errors are raised as `StoreError`."""

    def __init__(self, file: Any, size: int) -> None:
        self._file = file
        self.size = size

    def seekable(self) -> bool:
        return True

    def read_some(self, size: int) -> bytes:
        data: bytes = self._call(lambda: self._file.read(size))
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self.tell(), os.SEEK_END: self.size}[whence]
        if start + offset < 0:  # requested by a decoder of damaged data
            raise OSError(errno.EINVAL, "a place before the start of the file")
        return int(self._call(lambda: self._file.seek(start + offset)))

    def tell(self) -> int:
        return int(self._call(self._file.tell))

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()

    def _call(self, work: Callable[[], Any]) -> Any:
        try:
            return work()
        # Each store has its own exceptions: OSError, those of Arrow, of an HTTP client...
        except Exception as error:
            raise StoreError(str(error)) from error


def open_input(uri: str) -> InputStream:
    """Open a local or remote file for random access.

    Raises:
        UnreadableFile: The file is missing, not accessible, or not a regular file.
        StoreError: The store does not answer.
        UserError: The URI's scheme is not supported.
    """
    with _open_errors(uri):
        if "://" not in uri:  # faster than through Arrow, and with names that are not UTF-8
            descriptor, size = _open_regular(uri)
            return InputStream(open(descriptor, "rb", buffering=0), size)
        fs, path = open_location(uri)
        file = fs.open_input_file(path)
        return InputStream(file, file.size())


def read_beginning(uri: str, size: int) -> bytes:
    """Read the first `size` bytes of a file, optimized for small local files."""
    if "://" in uri:
        with open_input(uri) as stream:
            return read_exactly(cast(IO[bytes], stream), min(size, stream.size + 1))
    with _open_errors(uri):
        descriptor, there = _open_regular(uri)
        try:
            size = min(size, there)
            data = os.read(descriptor, size)
            while len(data) < size and (more := os.read(descriptor, size - len(data))):
                data += more
        finally:
            os.close(descriptor)
        return data


def _open_regular(path: str) -> tuple[int, int]:
    """Open a local file; return its descriptor and size."""
    # Without O_NONBLOCK, opening a FIFO waits for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise UnreadableFile("not a regular file")
    return descriptor, status.st_size


@contextmanager
def _open_errors(uri: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError) as error:
        raise UnreadableFile(error.strerror or first_line(error)) from error
    except OSError as error:
        if error.errno in _OF_THE_FILE and "://" not in uri:
            raise UnreadableFile(error.strerror) from error
        raise StoreError(str(error)) from error


class _Decompressor(Protocol):
    eof: bool
    needs_input: bool

    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class _Gzip:
    """Adapter of zlib's decompressor for one gzip member to the interface of bz2 and lzma."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)


_DECOMPRESSORS: dict[bytes, Callable[[], Any]] = {
    b"\x1f\x8b": _Gzip,
    b"BZh": bz2.BZ2Decompressor,
    b"\xfd7zXZ\x00": lambda: lzma.LZMADecompressor(memlimit=XZ_MEMORY),
}
_ZSTD = b"\x28\xb5\x2f\xfd"


class Unpacked(ByteStream):
    """Decompressed gzip, bzip2 or xz data: all members, ignoring zeros after the last.

    Raises `EOFError` if the data is truncated, and `ValueError` if other bytes follow; everything
    decompressed before that has been read by then.
    """

    def __init__(self, packed: IO[bytes], make: Callable[[], _Decompressor]) -> None:
        self._packed = packed
        self._make = make
        self._inner = make()
        self._rest = b""

    def read_some(self, size: int) -> bytes:
        while True:
            if self._inner.eof:
                if not self._next_member():
                    return b""
                continue
            if self._inner.needs_input and not self._rest:
                self._rest = self._packed.read(_PACKED_CHUNK)
                if not self._rest:
                    raise EOFError("the compressed data is cut off")
            data = self._inner.decompress(self._rest, size)
            self._rest = b""
            if data:
                return data

    def _next_member(self) -> bool:
        rest = self._inner.unused_data
        while not (rest := rest.lstrip(b"\x00")):
            if not (rest := self._packed.read(_CHUNK)):
                return False
        rest += self._packed.read(8)
        make = next((m for magic, m in _DECOMPRESSORS.items() if rest.startswith(magic)), None)
        if make is not self._make:
            left = len(rest)
            while more := self._packed.read(_CHUNK):
                left += len(more)
            raise ValueError(f"{left:,} bytes after the end of the compressed data were not read")
        self._inner, self._rest = self._make(), rest
        return True


class Bounded(ByteStream):
    """Stream that raises `TooLarge` after `limit` bytes, and repeats its first error forever."""

    def __init__(self, stream: IO[bytes], limit: int | None) -> None:
        self._stream = stream
        self._limit = limit
        self._read = 0
        self._error: Exception | None = None

    def read_some(self, size: int) -> bytes:
        if self._error is not None:
            raise self._error
        try:
            # Arrow's decompressor loses the data unpacked in the call that meets damage.
            data = self._stream.read(min(size, _PIECE))
            self._read += len(data)
            if self._limit is not None and self._read > self._limit:
                raise TooLarge(f"it unpacks to more than {self._limit:,} bytes")
        except Exception as error:
            self._error = error
            raise
        return data


class Prefixed(ByteStream):
    """Stream of bytes that were already read, followed by the rest of their stream."""

    def __init__(self, head: bytes, stream: IO[bytes]) -> None:
        self._head = head
        self._stream = stream

    def read_some(self, size: int) -> bytes:
        if not self._head:
            return self._stream.read(size)
        data, self._head = self._head[:size], self._head[size:]
        return data


def unpacked(stream: IO[bytes], packed_size: int) -> tuple[IO[bytes], bool]:
    """Return the stream, decompressed if its first bytes are compressed data, and whether it was.

    `packed_size` is the size of the compressed data in the input file; it bounds the decompression.
    """
    head = read_exactly(stream, 8)
    whole = cast(IO[bytes], Prefixed(head, stream))
    make = next((m for magic, m in _DECOMPRESSORS.items() if head.startswith(magic)), None)
    if make is not None:
        whole = cast(IO[bytes], Unpacked(whole, make))
    elif head.startswith(_ZSTD):
        whole = pa.CompressedInputStream(pa.PythonFile(whole, mode="r"), "zstd")
    else:
        return cast(IO[bytes], Bounded(whole, None)), False
    limit = UNPACKED_FREELY + MAX_RATIO * packed_size
    return cast(IO[bytes], Bounded(whole, limit)), True


def spooled(stream: IO[bytes]) -> IO[bytes]:
    """Return a seekable copy of the stream, on disk if it is large.

    Raises:
        TooLarge: The stream has more than MAX_SPOOL_BYTES.
    """
    file = tempfile.SpooledTemporaryFile(SPOOL_MEMORY)  # noqa: SIM115
    size = 0
    while chunk := stream.read(_CHUNK):
        size += len(chunk)
        if size > MAX_SPOOL_BYTES:
            file.close()
            raise TooLarge(f"more than {MAX_SPOOL_BYTES:,} bytes; unpack it to read it")
        file.write(chunk)
    file.seek(0)
    return cast(IO[bytes], file)


def read_exactly(stream: IO[bytes], size: int) -> bytes:
    """Read exactly `size` bytes; fewer at the end of the stream or before damaged data.

    An error of the data is raised only if no byte precedes it.
    """
    pieces: list[bytes] = []
    while size > 0:
        try:
            piece = stream.read(size)
        except StoreError:
            raise
        except Exception:
            if not pieces:
                raise
            break
        if not piece:
            break
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)
