"""Clean one group of files in parts, with a bounded number of attempts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from ochat_ray.data import clean
from ochat_ray.data.attempts import Attempt, given_up, next_attempt, read_file_by_file
from ochat_ray.data.content import digests_of_pages
from ochat_ray.data.parts.clean import clean_part, parts_of
from ochat_ray.data.parts.files import Summary, done_name
from ochat_ray.data.plan import group_files, record_content
from ochat_ray.data.records import DEFAULTS, ReadOptions
from ochat_ray.data.sources import read_file, read_files
from ochat_ray.run_dir import RunDir, not_on_this_host
from ochat_ray.schema import Conversation, Record


def clean_group(
    run: RunDir,
    number: int,
    rules: Sequence[clean.Rule],
    *,
    options: ReadOptions,
    session: str,
) -> Iterator[Summary]:
    """Read and clean a group of files; yield the summaries of its parts, reusing complete ones.

    Args:
        run: Work folder.
        number: Number of the group.
        rules: Cleaning rules to apply.
        options: User options for reading the inputs.
        session: Id of this run of the job.
    """
    if run.exists(_done_group(number)):  # the task died after this group and was retried
        yield from finished_group(run, number)
        return
    files = group_files(run, number)
    uris = [file.uri for file in files]
    for uri in uris:
        if "://" not in uri and not os.path.exists(uri):
            raise not_on_this_host(uri)

    def record(pages: Sequence[bytes | None]) -> None:
        record_content(run, number, files, digests_of_pages(uris, pages))

    count, parts = parts_of_group(
        run,
        done_name("attempts", f"{number:06d}"),
        uris,
        session=session,
        is_complete=lambda n: run.exists(done_name("clean", _part(number, n))),
        rules=rules,
        options=options,
        observe=record,
    )
    for part in range(count):
        yield run.load_json(done_name("clean", _part(number, part)))
    with ThreadPoolExecutor(1) as pool:
        # The bytes of small files are hashed while they are read; a large file is read twice.
        content = pool.submit(record_content, run, number, files) if len(files) == 1 else None
        for records in parts:
            if content:
                content.result()
            name = _part(number, count)
            summary = run.read_json(done_name("clean", name))
            if summary is None:
                summary = clean_part(run, name, records, rules)
                run.write_json(done_name("clean", name), summary)
            yield summary
            count += 1
        if content:
            content.result()
    run.write_json(_done_group(number), {"parts": count})


def finished_group(run: RunDir, number: int) -> Iterator[Summary]:
    """Yield the summaries of the parts of a finished group."""
    for part in range(run.load_json(_done_group(number))["parts"]):
        yield run.load_json(done_name("clean", _part(number, part)))


def parts_of_group(
    run: RunDir,
    name: str,
    uris: Sequence[str],
    *,
    session: str,
    is_complete: Callable[[int], bool],
    rules: Sequence[clean.Rule],
    options: ReadOptions = DEFAULTS,
    observe: Callable[[list[bytes | None]], object] = list,
) -> tuple[int, Iterator[list[Record]]]:
    """Begin an attempt; return the number of reused parts, and the records of the later ones.

    Args:
        run: Directory in which the attempt is recorded.
        name: File that records it.
        uris: The group's files.
        session: Id of this run of the job.
        is_complete: Returns whether the part with this number is complete.
        rules: Cleaning rules to apply, which may kill a worker just as reading may.
        options: User options for reading the inputs.
        observe: Called with the bytes of several pages, in order, before the first record is
            yielded;
            None for files that must be read again.
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
        observe([None] * len(uris))
        read = partial(read_file, options=options)
        return 0, parts_of(read_file_by_file(attempt, uris, read, work, save))
    return 0, parts_of(read_files(uris, options, observe))


def _done_group(number: int) -> str:
    return done_name("groups", f"{number:06d}")


def _part(group: int, number: int) -> str:
    return f"{group:06d}-{number:04d}"
