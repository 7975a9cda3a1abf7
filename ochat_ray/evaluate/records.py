"""Append-only JSON-lines files, keyed by a digest of everything that a call depends on.

A recorded call is never repeated. A killed run loses only the calls in flight.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ochat_ray.errors import UserError
from ochat_ray.evaluate.replies import read_logprobs


def key_of(*parts: Any) -> str:
    """Return a key for these JSON values, 32 hex digits, independent of the order of fields."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """Request to an endpoint: its key, its body, and metadata for its record."""

    key: str
    body: Mapping[str, Any]
    about: Mapping[str, Any]


FAILED = "failed"
"""Field with the reason why a call was refused."""

CONTROL = "control"
"""Field that marks the record of a judgment of an answer compared with itself."""


_TYPES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("key", "text", "reason", FAILED, "reasoning", "finish_reason"), str),
    **dict.fromkeys(("prompt_tokens", "completion_tokens", "attempts"), (int, float)),
    "logprobs": list,
    "changed": dict,
}
"""Types of the fields that are read from a record."""


class Records:
    """Records of one file by their `key`, with at most one process writing.

    A line truncated by a kill is ignored, and so is one that lacks a field in `needed` or has
    another type in a field than we write; of two with one key the last counts, which replaced the
    first.

    Raises:
        UserError: Another process has the file open, or its folder cannot be made.
    """

    def __init__(self, path: Path, needed: Sequence[str] = ()) -> None:
        make_folder(path.parent)
        self._file = open(path, "a+b", buffering=0)  # noqa: SIM115 - __exit__ closes it
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise UserError(
                f"another evaluation writes {path}; wait for it, or choose another --output"
            ) from None
        self._records: dict[str, dict[str, Any]] = {}
        self._file.seek(0)
        content = self._file.read()
        for line in content.splitlines():
            record = _record(line)
            if record is not None and all(name in record for name in needed):
                self._records[record["key"]] = record
        self._cut_off = bool(content) and not content.endswith(b"\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file, which lets other processes write it."""
        self._file.close()

    def __contains__(self, key: str) -> bool:
        return key in self._records

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self._records[key]

    def get(self, key: str) -> dict[str, Any] | None:
        """Return the record with this key; None if there is none."""
        return self._records.get(key)

    def forget(self, key: str) -> None:
        """Forget a record, so that another one with its key can be added."""
        self._records.pop(key, None)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._records.values())

    def __len__(self) -> int:
        return len(self._records)

    def add(self, key: str, record: Mapping[str, Any]) -> None:
        """Write a record, unless one with this key exists.

        Raises:
            OSError: The record could not be written and is not counted.
        """
        if key in self._records:
            return
        whole = {"key": key, **record}
        line = json.dumps(whole, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        if self._cut_off:
            line = b"\n" + line
        if self._file.write(line) != len(line):
            self._cut_off = True
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._file.name)
        self._cut_off = False
        self._records[key] = whole


def make_folder(path: Path) -> None:
    """Create the folder of an evaluation's files, if it does not exist.

    Raises:
        UserError: It cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f"--output {path} cannot be created ({error.strerror}: {error.filename}); give another "
            "directory"
        ) from error


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    # A text that is no text came from a server, by way of an earlier version.
    if not (isinstance(record, dict) and "key" in record):
        return None
    good = all(isinstance(record[name], kind) for name, kind in _TYPES.items() if name in record)
    if good and "logprobs" in record:
        record["logprobs"] = read_logprobs(record["logprobs"])
    return record if good else None
