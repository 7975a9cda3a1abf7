"""Where a run's artifacts lie, on a local disk or behind any URI that pyarrow can open.

A file appears whole or not at all, under the same name however often it is written. A stage's
manifest is written last: where there is none, the stage is not complete.
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

from ochat_ray.errors import UserError

MANIFEST = "manifest.json"

S3_ATTEMPTS = 11
"""Requests until an S3 error (503, a reset connection) is raised: after 25 ms, 50 ms, ... 25 s."""

_SURROGATE = re.compile("[\ud800-\udfff]")

Split = Literal["train", "eval"]


def absolute(uri: str) -> str:
    """A path that means the same in any directory; a URI as it is."""
    return uri if "://" in uri else os.path.abspath(os.path.expanduser(uri))


def not_on_this_host(path: str) -> UserError:
    """What to say of a local path that is there on another host of the cluster, and not here."""
    return UserError(
        f"{path} is not there on {socket.gethostname()}; "
        "what several hosts use must be at a URI (s3://...) or in a folder that all of them mount"
    )


def open_location(uri: str) -> tuple[pafs.FileSystem, str]:
    """The file system and the path in it of a local path or a URI.

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
    """Return an S3 file system that backs off exponentially for 50 s; others as they are.

    `from_uri` takes no retry strategy, and pickling loses it (apache/arrow issue 47348). The
    options are those that pickling keeps. AWS's "standard" strategy, pyarrow's default, stops
    retrying once a hundred retries of a process have failed, as under a rate limit they do.
    A small file is one request and no multipart upload (`allow_delayed_open`), of which a killed
    process would leave a part behind.
    """
    if not isinstance(fs, pafs.S3FileSystem):
        return fs
    _, (options,) = fs.__reduce__()
    retries = pafs.AwsDefaultS3RetryStrategy(max_attempts=S3_ATTEMPTS)
    options = options | {"allow_delayed_open": True}
    return pafs.S3FileSystem(**options, retry_strategy=retries)


@dataclass(frozen=True, slots=True)
class RunDir:
    """One directory of artifacts; names below it use "/" and are relative to it."""

    fs: pafs.FileSystem
    root: str

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.fs, self.root)

    @classmethod
    def open(cls, uri: str) -> RunDir:
        """The run directory at a local path or URI; nothing is created yet.

        Raises:
            UserError: no file system has such a place.
        """
        if _SURROGATE.search(uri):
            raise UserError(f"{uri!r} is not UTF-8, as pyarrow requires it; give another directory")
        return cls(*open_location(uri))

    def path(self, name: str) -> str:
        """The full path of a name, on this directory's file system."""
        return posixpath.join(self.root, name)

    def exists(self, name: str = "") -> bool:
        """Whether there is a file or folder of this name."""
        return self.fs.get_file_info(self.path(name)).type != pafs.FileType.NotFound

    def files(self, folder: str, suffix: str) -> list[str]:
        """Names of the whole files in a folder, sorted."""
        selector = pafs.FileSelector(self.path(folder), allow_not_found=True)
        names = (
            posixpath.join(folder, info.base_name)
            for info in self.fs.get_file_info(selector)
            if info.type == pafs.FileType.File
        )
        return sorted(n for n in names if n.endswith(suffix) and "/.tmp-" not in f"/{n}")

    @contextmanager
    def writing(self, name: str) -> Iterator[pa.NativeFile]:
        """A stream that becomes the file `name` when the block ends without an error."""
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
        """A file that the run wrote before, for random access.

        Raises:
            UserError: it is not there or damaged, as after a crash of the host.
        """
        try:
            with self.fs.open_input_file(self.path(name)) as file:
                yield file
        except (FileNotFoundError, pa.ArrowInvalid) as error:
            raise UserError(
                f"{self.path(name)} is missing or damaged ({str(error).splitlines()[0]}); "
                "run again without --resume"
            ) from error

    def move(self, name: str, to: str) -> None:
        """Rename a file; one that is there under the new name is replaced."""
        self.fs.create_dir(posixpath.dirname(self.path(to)), recursive=True)
        self.fs.move(self.path(name), self.path(to))

    def write_text(self, name: str, text: str) -> None:
        """Write a small text file, whole or not at all."""
        with self.writing(name) as stream:
            stream.write(text.encode())

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file for people to read, whole or not at all."""
        text = json.dumps(value, indent=2, ensure_ascii=False)
        if not text.isascii() and _SURROGATE.search(text):  # of a file name that is not UTF-8
            text = json.dumps(value, indent=2)
        self.write_text(name, text + "\n")

    def read_json(
        self, name: str, advice: str = "run again without --resume, or remove it"
    ) -> Any | None:
        """The JSON file's value, or None where there is no such file.

        Raises:
            UserError: it is no file, or not JSON; a crash of the host may have cut it off. Ends in
                `advice`.
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
        """The JSON file's value.

        Raises:
            UserError: there is no such file, as on a host that does not share the directory.
        """
        value = self.read_json(name)
        if value is None:
            raise not_on_this_host(self.path(name))
        return value

    def remove(self, name: str) -> None:
        """Remove a file or a folder, if it is there."""
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
    """The manifest, where the run that it describes is the one that is asked for; otherwise None.

    `identity` is what a run's result depends on, in plain JSON values; manifests repeat it.

    Raises:
        UserError: another run is complete there, and `overwrite` does not give it up.
    """
    found = run.read_json(manifest)
    if found is None:
        return None
    if found.get("identity") == identity:
        print(f"{run.root} is complete already, with this configuration; nothing to do")
        return dict(found)
    if not overwrite:
        before = found.get("identity") or {}
        different = [key for key in identity if before.get(key) != identity[key]]
        raise UserError(
            f"{run.root} holds a complete run of another configuration ({', '.join(different)}); "
            "choose another --output, or replace it with --overwrite"
        )
    return None


def read_manifest(uri: str) -> dict[str, Any]:
    """The manifest of a complete `prepare` run.

    Raises:
        UserError: there is none.
    """
    manifest = RunDir.open(uri).read_json(MANIFEST, "prepare the data again")
    if manifest is None:
        raise UserError(
            f"no complete data at {uri}: {MANIFEST} is missing; run prepare with --output {uri}"
        )
    for key in ("digest", "tokens", "tokenizer", "model_type", "context_length"):
        if not isinstance(manifest, dict) or key not in manifest:
            raise UserError(f"{uri}/{MANIFEST} is damaged: it has no {key}; prepare the data again")
    return manifest


def open_tokens(uri: str, split: Split) -> pa.Table:
    """One split's token table, in the order of its files; memory-mapped where it is local."""
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
                f"{run.path(name)} is damaged ({str(error).splitlines()[0]}); prepare the data "
                "again"
            ) from error
    if not tables:
        raise UserError(f"the {split} split at {uri} is empty; prepare more data or another split")
    return pa.concat_tables(tables)
