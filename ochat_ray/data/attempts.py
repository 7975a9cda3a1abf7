"""A bounded number of attempts to read a group of files.

An input may end the worker that reads it: it takes more memory than there is, or crashes a library.
Ray runs such a task again, for ever. So each attempt is recorded before it starts. One that finds
the record of an earlier attempt knows that its worker ended. After MAX_ENDED of these without
progress a group of one file is given up; a group of several is read one file at a time, each
recorded, until the file that ends the workers is known and is given up.

Only attempts of one session, a run of the job, count: a job that is killed kills its workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ochat_ray.data.kinds import basename, printable
from ochat_ray.schema import Drop, Reason, Record, Stage

MAX_ENDED = 3
"""Workers that one file, or a group without progress, may end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """The record of an attempt on a group of files, which the next attempt finds.

    `parts` of the group were complete when it began. `ended` attempts before it ended without
    completing another part. `reading` is the number of the file that was being read alone, or
    None; `ended_by_file` counts the workers that ended while each was. The files `given_up` are
    not read again, by a resumed run neither.
    """

    session: str
    parts: int
    ended: int = 0
    reading: int | None = None
    ended_by_file: dict[str, int] = field(default_factory=dict)
    given_up: tuple[int, ...] = ()

    @classmethod
    def from_json(cls, value: Any | None) -> Attempt | None:
        """Return the record of a JSON value, or None where there is none."""
        return None if value is None else cls(**{**value, "given_up": tuple(value["given_up"])})

    def to_json(self) -> dict[str, Any]:
        """Return the record as a JSON value."""
        return asdict(self)

    def file_by_file(self, files: int) -> bool:
        """Tell if a group of so many files is to be read one file at a time."""
        return files > 1 and (self.ended >= MAX_ENDED or bool(self.given_up))


def next_attempt(last: Attempt | None, session: str, parts: int, files: int) -> Attempt:
    """Return the record of a new attempt, given the last one that did not complete the group."""
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
    # No file ends a worker alone, but all of them together do.
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
    """Yield the records of the files, and a `Drop` for each file that is given up.

    Args:
        attempt: this attempt's record, `save`d again with each file that is read.
        uris: the group's files.
        read: reads one of them.
        work: is done with each record while its file is known to be read, and again later.
        save: writes an attempt's record.
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
    """Return the drop of a file whose reading ended too many workers.

    `parts` of it are complete, and the rest is given up.
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
