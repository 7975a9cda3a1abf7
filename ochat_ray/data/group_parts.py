"""Records of a group of files in parts, within a bounded number of attempts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from ochat_ray.data import clean
from ochat_ray.data.attempts import Attempt, given_up, next_attempt, read_file_by_file
from ochat_ray.data.parts import parts_of
from ochat_ray.data.records import DEFAULTS, ReadOptions
from ochat_ray.data.sources import read_file, read_files
from ochat_ray.run_dir import RunDir
from ochat_ray.schema import Conversation, Record


def parts_of_group(
    run: RunDir,
    name: str,
    uris: Sequence[str],
    *,
    session: str,
    is_complete: Callable[[int], bool],
    rules: Sequence[clean.Rule],
    options: ReadOptions = DEFAULTS,
) -> tuple[int, Iterator[list[Record]]]:
    """Begin an attempt; return how many parts stay as they are, and the records of the later ones.

    Args:
        run: where the attempt is recorded.
        name: the file that records it.
        uris: the group's files.
        session: an id of this run of the job.
        is_complete: tells if the part of this number is complete.
        rules: what cleaning applies, which may end a worker as reading may.
        options: what the user says about the inputs.
    """
    last = Attempt.from_json(run.read_json(name))
    complete = 0
    while last is not None and is_complete(complete):
        complete += 1

    def save(attempt: Attempt) -> None:
        run.write_json(name, attempt.to_json())

    def work(record: Record) -> None:
        if isinstance(record, Conversation):
            clean.clean(record, rules)

    attempt = next_attempt(last, session, complete, len(uris))
    save(attempt)
    if len(uris) == 1 and attempt.given_up:
        return complete, iter([[given_up(uris[0], complete)]])
    if attempt.file_by_file(len(uris)):
        read = partial(read_file, options=options)
        return 0, parts_of(read_file_by_file(attempt, uris, read, work, save))
    return 0, parts_of(read_files(uris, options))
