"""Share pages in archives, read as streams: a member at a time, of bounded size."""

from __future__ import annotations

import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator

import pyarrow as pa

from ochat_ray.data.inputs import basename, is_page
from ochat_ray.data.share_page import MAX_PAGE_BYTES, Unusable
from ochat_ray.run_dir import open_location
from ochat_ray.schema import Drop, Reason, Record, Stage

ParsePage = Callable[[bytes | Unusable, str], Iterator[Record]]

_DAMAGED = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)


def tar_pages(uri: str, parse: ParsePage) -> Iterator[Record]:
    """The pages of a tar archive, compressed or not; members of other kinds are passed over.

    Where the archive is damaged or cut off, what was whole before is kept and a `Drop` says so.
    """
    fs, path = open_location(uri)
    read = 0
    try:
        with (
            fs.open_input_stream(path, compression=None) as stream,
            tarfile.open(fileobj=stream, mode="r|*") as archive,
        ):
            for member in archive:
                file = archive.extractfile(member) if _is_page_file(member) else None
                if file is not None:
                    page = file.read(MAX_PAGE_BYTES + 1)
                    if len(page) < min(member.size, MAX_PAGE_BYTES + 1):
                        raise EOFError("it ends in the middle of a page")
                    yield from parse(page, f"{uri}!{member.name}")
                    read += 1
    except _DAMAGED as error:
        yield _torn(uri, read, error)
    except OSError as error:  # gzip's for bytes that are not its own
        if error.errno is not None:
            raise
        yield _torn(uri, read, error)


def zip_pages(uri: str, parse: ParsePage) -> Iterator[Record]:
    """The pages of a zip archive, as `tar_pages`; a damaged member costs only itself."""
    fs, path = open_location(uri)
    try:
        with fs.open_input_file(path) as stream, zipfile.ZipFile(stream) as archive:
            for info in archive.infolist():
                if not info.is_dir() and is_page(info.filename):
                    yield from parse(_zip_member(archive, info), f"{uri}!{info.filename}")
    except (*_DAMAGED, pa.ArrowInvalid) as error:  # Arrow's for a seek before the start
        yield _torn(uri, 0, error)


def _is_page_file(member: tarfile.TarInfo) -> bool:
    return member.isfile() and is_page(member.name)


def _zip_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes | Unusable:
    try:
        with archive.open(info) as file:
            return file.read(MAX_PAGE_BYTES + 1)
    except (*_DAMAGED, RuntimeError, NotImplementedError) as error:  # encrypted, unknown method
        return Unusable(Reason.UNREADABLE, str(error).split("\n")[0])


def _torn(uri: str, read: int, error: BaseException) -> Drop:
    return Drop(
        id=basename(uri),
        source=uri,
        stage=Stage.READ,
        reason=Reason.TORN,
        detail=f"after {read} whole pages: {error or type(error).__name__}",
    )
