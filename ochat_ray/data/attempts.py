"""Bounded number of attempts to read a group of files.

An input may kill the worker that reads it, by exhausting the memory or crashing a library, and Ray
retries such a task indefinitely. So each attempt is recorded before it starts. An attempt that
finds an unfinished record knows that the earlier worker died. After MAX_ENDED worker deaths without
progress a group of one file is skipped; a group of several is read one file at a time, each
recorded, until the file that kills workers is identified and skipped.

Only attempts of one session (one run of the job) count: a job that is killed kills its workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ochat_ray.data.kinds import basename, printable
from ochat_ray.schema import Drop, Reason, Record, Stage

MAX_ENDED = 3
"""Worker deaths allowed per file, and per group without progress."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """Record of an attempt on a group of files, read by the next attempt.

    `parts` of the group were complete when it began. `ended` earlier attempts died without
    completing another part. `reading` is the number of the file being read alone, or None;
    `ended_by_file` counts the worker deaths per file. Files in `given_up` are not read again, not
    even by a resumed run.
    """

    session: str
    parts: int
    ended: int = 0
    reading: int | None = None
    ended_by_file: dict[str, int] = field(default_factory=dict)
    given_up: tuple[int, ...] = ()

    @classmethod
    def from_json(cls, value: Any | None) -> Attempt | None:
        """Return the record from a JSON value, or None if there is none."""
        return None if value is None else cls(**{**value, "given_up": tuple(value["given_up"])})

    def to_json(self) -> dict[str, Any]:
        """Return the record as a JSON value."""
        return asdict(self)

    def file_by_file(self, files: int) -> bool:
        """Return whether a group of this many files must be read one file at a time."""
        return files > 1 and (self.ended >= MAX_ENDED or bool(self.given_up))


def next_attempt(last: Attempt | None, session: str, parts: int, files: int) -> Attempt:
    """Return the record of a new attempt, given the previous, unfinished one."""
    if last is None:
        return Attempt(session=session, parts=parts)
    if last.session != session:
        return Attempt(session=session, parts=parts, given_up=last.given_up)
    if last.reading is not None:
        number = str(last.reading)
        ended = last.ended_by_file.get(number, 0) + 1
        given_up = last.given_up
        if ended >= MAX_ENDED:
            given_up = tuple(sorted({*given_up, last.reading}))
        return replace(
            last,
            parts=parts,
            reading=None,
            ended_by_file={**last.ended_by_file, number: ended},
            given_up=given_up,
        )
    ended = last.ended + 1 if parts == last.parts else 1
    given_up = last.given_up
    # No single file kills a worker, but all of them together do.
    if ended >= (MAX_ENDED if files == 1 else 3 * MAX_ENDED):
        given_up = tuple(range(files))
    return replace(last, parts=parts, ended=ended, given_up=given_up)


def read_file_by_file(
    attempt: Attempt,
    uris: Sequence[str],
    read: Callable[[str], Iterator[Record]],
    work: Callable[[Record], object],
    save: Callable[[Attempt], None],
) -> Iterator[Record]:
    """Yield the records of the files, and a `Drop` for each file that is skipped.

    Args:
        attempt: This attempt's record, `save`d again with each file that is read.
        uris: The group's files.
        read: Reads one file.
        work: Called with each record while its file is recorded as being read; called again later.
        save: Writes an attempt's record.
    """
    for number, uri in enumerate(uris):
        if number in attempt.given_up:
            yield given_up(uri)
            continue
        save(replace(attempt, reading=number))
        records = list(read(uri))
        for record in records:
            work(record)
        yield from records
    save(replace(attempt, reading=None))


def given_up(uri: str, parts: int = 0) -> Drop:
    """Return the drop of a file that killed too many workers.

    Its first `parts` parts are complete; the rest is dropped.
    """
    source = printable(uri)
    detail = f"its reading ended the worker {MAX_ENDED} times"
    if parts:
        detail += f"; what follows its first {parts:,} parts of records was not read"
    return Drop(
        id=basename(source),
        source=source,
        stage=Stage.READ,
        reason=Reason.UNREADABLE,
        detail=detail,
    )
