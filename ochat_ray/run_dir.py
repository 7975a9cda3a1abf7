"""Run directories: artifacts of a run on a local disk or at any URI that pyarrow can open.

Files are written atomically, and a retry replaces the file of the same name. A stage's manifest is
written last; without one the stage is not complete.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
from pyarrow import fs as pafs

from ochat_ray.errors import UserError, first_line

MANIFEST = "manifest.json"

S3_ATTEMPTS = 11
"""Attempts of a request until an S3 error (503, a reset connection) is raised, with waits of 25 ms,
50 ms, ... 25 s between them."""

_SURROGATE = re.compile("[\ud800-\udfff]")

Split = Literal["train", "eval"]


def absolute(uri: str) -> str:
    """Return the absolute path of a local path; URIs unchanged."""
    return uri if "://" in uri else os.path.abspath(os.path.expanduser(uri))


def absolute_if_local(name: str) -> str:
    """Return the absolute path of a local directory; a URI or Hub name unchanged."""
    return absolute(name) if os.path.exists(name) else name


def not_on_this_host(path: str) -> UserError:
    """Return the error for a local path that exists on another node, but not on this one."""
    return UserError(
        f"{path} does not exist on {socket.gethostname()}; files that several nodes use must be "
        "at a URI (s3://...) or in a folder that all of them mount"
    )


def open_location(uri: str) -> tuple[pafs.FileSystem, str]:
    """Return the file system of a local path or URI, and the path on it.

    Raises:
        UserError: the URI's scheme is not one that pyarrow or fsspec can open.
    """
    if "://" not in uri:
        return pafs.LocalFileSystem(), absolute(uri)
    try:
        fs, path = pafs.FileSystem.from_uri(uri)
    except (pa.ArrowInvalid, ValueError, ImportError) as error:
        raise UserError(f"cannot open {uri}: {error}") from error
    return with_retries(fs), path


def with_retries(fs: pafs.FileSystem) -> pafs.FileSystem:
    """Return an S3 file system that retries with exponential backoff for 50 s; others unchanged.

    `from_uri` accepts no retry strategy, and pickling loses it (apache/arrow issue 47348). The
    options are those that pickling keeps. AWS's "standard" strategy, pyarrow's default, stops
    retrying after a hundred failed retries of a process, which a rate limit causes.
    A small file is one request instead of a multipart upload (`allow_delayed_open`), of which a
    killed process would leave parts.
    """
    if not isinstance(fs, pafs.S3FileSystem):
        return fs
    _, (options,) = fs.__reduce__()
    retries = pafs.AwsDefaultS3RetryStrategy(max_attempts=S3_ATTEMPTS)
    options = options | {"allow_delayed_open": True}
    return pafs.S3FileSystem(**options, retry_strategy=retries)


@dataclass(frozen=True, slots=True)
class RunDir:
    """Directory of artifacts; names of files are relative to it and use "/"."""

    fs: pafs.FileSystem
    root: str

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.fs, self.root)

    @classmethod
    def open(cls, uri: str) -> RunDir:
        """Return the run directory at a local path or URI, without creating it.

        Raises:
            UserError: the path is not UTF-8, or no file system can open the URI.
        """
        if _SURROGATE.search(uri):
            raise UserError(f"{uri!r} is not UTF-8, which pyarrow requires; give another directory")
        return cls(*open_location(uri))

    def path(self, name: str) -> str:
        """Return the full path of a name on this directory's file system."""
        return posixpath.join(self.root, name)

    def exists(self, name: str = "") -> bool:
        """Return whether a file or folder of this name exists."""
        return self.fs.get_file_info(self.path(name)).type != pafs.FileType.NotFound

    def files(self, folder: str, suffix: str) -> list[str]:
        """Return the sorted names of the complete files in a folder."""
        selector = pafs.FileSelector(self.path(folder), allow_not_found=True)
        names = (
            posixpath.join(folder, info.base_name)
            for info in self.fs.get_file_info(selector)
            if info.type == pafs.FileType.File
        )
        return sorted(n for n in names if n.endswith(suffix) and "/.tmp-" not in f"/{n}")

    @contextmanager
    def writing(self, name: str) -> Iterator[pa.NativeFile]:
        """Yield a stream that becomes the file `name` if the block ends without an error."""
        folder, base = posixpath.split(self.path(name))
        self.fs.create_dir(folder, recursive=True)
        unfinished = posixpath.join(folder, f".tmp-{uuid.uuid4().hex}-{base}")
        try:
            with self.fs.open_output_stream(unfinished, compression=None) as stream:
                yield stream
            self.fs.move(unfinished, self.path(name))
        except BaseException:
            if self.fs.get_file_info(unfinished).type == pafs.FileType.File:
                self.fs.delete_file(unfinished)
            raise

    @contextmanager
    def reading(self, name: str) -> Iterator[pa.NativeFile]:
        """Open a file that the run wrote before, for random access.

        Raises:
            UserError: it is missing or damaged, for example after a crash of the host.
        """
        try:
            with self.fs.open_input_file(self.path(name)) as file:
                yield file
        except (FileNotFoundError, pa.ArrowInvalid) as error:
            raise UserError(
                f"{self.path(name)} is missing or damaged ({first_line(error)}); "
                "run again without --resume"
            ) from error

    def move(self, name: str, to: str) -> None:
        """Rename a file, replacing a file of the new name."""
        self.fs.create_dir(posixpath.dirname(self.path(to)), recursive=True)
        self.fs.move(self.path(name), self.path(to))

    def write_text(self, name: str, text: str) -> None:
        """Write a small text file atomically."""
        with self.writing(name) as stream:
            stream.write(text.encode())

    def write_json(self, name: str, value: Any) -> None:
        """Write an indented JSON file atomically."""
        text = json.dumps(value, indent=2, ensure_ascii=False)
        if not text.isascii() and _SURROGATE.search(text):  # of a file name that is not UTF-8
            text = json.dumps(value, indent=2)
        self.write_text(name, text + "\n")

    def read_json(
        self, name: str, advice: str = "run again without --resume, or remove it"
    ) -> Any | None:
        """Return the value of a JSON file, or None if it does not exist.

        Raises:
            UserError: it is not a file, or not JSON, for example truncated by a crash of the host.
                The message ends with `advice`.
        """
        kind = self.fs.get_file_info(self.path(name)).type
        if kind == pafs.FileType.NotFound:
            return None
        if kind != pafs.FileType.File:  # reading from a named pipe would wait forever
            raise UserError(f"{self.path(name)} is not a file; {advice}")
        with self.fs.open_input_stream(self.path(name), compression=None) as stream:
            data = stream.read()
        try:
            return json.loads(data)
        except ValueError as error:
            raise UserError(f"{self.path(name)} is damaged ({error}); {advice}") from error

    def load_json(self, name: str) -> Any:
        """Return the value of a JSON file.

        Raises:
            UserError: it does not exist, for example on a node that does not share the directory.
        """
        value = self.read_json(name)
        if value is None:
            raise not_on_this_host(self.path(name))
        return value

    def remove(self, name: str) -> None:
        """Remove a file or folder if it exists."""
        kind = self.fs.get_file_info(self.path(name)).type
        if kind == pafs.FileType.File:
            self.fs.delete_file(self.path(name))
        elif kind == pafs.FileType.Directory:
            self.fs.delete_dir(self.path(name))


def _reopen(fs: pafs.FileSystem, root: str) -> RunDir:
    return RunDir(with_retries(fs), root)


def completed(
    run: RunDir, manifest: str, identity: dict[str, Any], *, overwrite: bool
) -> dict[str, Any] | None:
    """Return the manifest of a complete run of this identity; None if no run is complete.

    `identity` holds everything that a run's result depends on, in plain JSON values. Manifests
    contain it. With `overwrite` a run of another identity counts as none.

    Raises:
        UserError: a run of another identity is complete, and `overwrite` is not set.
    """
    found = run.read_json(manifest)
    if found is None:
        return None
    before = found.get("identity") or {} if isinstance(found, dict) else None
    if not isinstance(before, dict):
        raise UserError(f"{run.path(manifest)} is damaged: it has no identity; remove it")
    if before == identity:
        print(f"{run.root} is complete already, with this configuration; nothing to do")
        return dict(found)
    if not overwrite:
        different = [key for key in identity if before.get(key) != identity[key]]
        raise UserError(
            f"{run.root} holds a complete run of another configuration ({', '.join(different)}); "
            "choose another --output, or replace it with --overwrite"
        )
    return None


def read_manifest(uri: str) -> dict[str, Any]:
    """Return the manifest of a complete `prepare` run.

    Raises:
        UserError: there is none.
    """
    manifest = RunDir.open(uri).read_json(MANIFEST, "prepare the data again")
    if manifest is None:
        raise UserError(
            f"no complete data at {uri}: {MANIFEST} is missing; run prepare with --output {uri}"
        )
    for key, kind in _MANIFEST_TYPES.items():
        if not isinstance(manifest, dict) or not isinstance(manifest.get(key), kind):
            raise UserError(
                f"{uri}/{MANIFEST} is damaged: it has no valid {key}; prepare the data again"
            )
    for split in ("train", "eval"):
        counts = manifest["tokens"].get(split)
        if not isinstance(counts, dict) or not isinstance(counts.get("rows"), int):
            raise UserError(
                f"{uri}/{MANIFEST} is damaged: it has no rows of {split}; prepare the data again"
            )
    return manifest


_MANIFEST_TYPES = {
    "digest": str, "tokens": dict, "tokenizer": str, "model_type": str, "context_length": int,
}  # fmt: skip


def open_tokens(uri: str, split: Split) -> pa.Table:
    """Return the token table of a split, in the order of its files; memory-mapped if local.

    Raises:
        UserError: a file is damaged, or the split is empty.
    """
    run = RunDir.open(uri)
    tables = []
    for name in run.files(f"tokens/{split}", ".arrow"):
        if isinstance(run.fs, pafs.LocalFileSystem):
            source: Any = pa.memory_map(run.path(name))
        else:
            source = run.fs.open_input_file(run.path(name))
        try:
            tables.append(pa.ipc.open_file(source).read_all())
        except pa.ArrowInvalid as error:
            raise UserError(
                f"{run.path(name)} is damaged ({first_line(error)}); prepare the data again"
            ) from error
    if not tables:
        raise UserError(f"the {split} split at {uri} is empty; prepare more data or another split")
    return pa.concat_tables(tables)
