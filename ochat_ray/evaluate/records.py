"""Append-only JSON lines under keys that everything they depend on went into.

A call that has its record is never made again; a run that is killed loses what was under way, and
nothing that had come.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ochat_ray.errors import UserError


def key_of(*parts: Any) -> str:
    """A key for what these JSON values say, whatever the order of their fields: 32 hex digits."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One question to an endpoint: its key, the body of the request, what its record says of it."""

    key: str
    body: Mapping[str, Any]
    about: Mapping[str, Any]


CONTROL = "control"
"""Marks the record of a judgment of an answer beside itself."""


class Records:
    """The records of one file, by their `key`. One process at a time writes it.

    A line that a kill cut off does not count; of two with one key the first does.

    Raises:
        UserError: another process has it open.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
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
            if (record := _record(line)) is not None:
                self._records.setdefault(record["key"], record)
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
        """Let others write."""
        self._file.close()

    def __contains__(self, key: str) -> bool:
        return key in self._records

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self._records[key]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._records.values())

    def __len__(self) -> int:
        return len(self._records)

    def add(self, key: str, record: Mapping[str, Any]) -> None:
        """Write a record, unless there is one of this key.

        Raises:
            OSError: it could not be written; nothing of it counts.
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


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("key"), str) else None
