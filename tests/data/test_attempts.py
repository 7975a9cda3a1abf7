"""A file that ends its workers is found, given up and counted; no other file is."""

import pytest

from ochat_ray.data.attempts import (
    MAX_ENDED,
    Attempt,
    given_up,
    next_attempt,
    read_file_by_file,
)
from ochat_ray.schema import Drop, PassedOver, Reason


class WorkerEndedError(Exception):
    pass


class Group:
    """A group of files of one record each, read by workers that end at the bad ones."""

    def __init__(self, files, bad=(), bad_work=()):
        self.uris = [f"/in/{n}.html" for n in range(files)]
        self.bad = {self.uris[n] for n in bad}
        self.bad_work = {self.uris[n] for n in bad_work}
        self.saved = None
        self.workers = 0

    def save(self, attempt):
        self.saved = attempt.to_json()

    def read(self, uri):
        if uri in self.bad:
            raise WorkerEndedError
        yield PassedOver(source=uri, kind="read")

    def work(self, record):
        if record.source in self.bad_work:
            raise WorkerEndedError

    def attempt(self, session):
        attempt = next_attempt(Attempt.from_json(self.saved), session, 0, len(self.uris))
        self.save(attempt)
        self.workers += 1
        if attempt.file_by_file(len(self.uris)):
            return list(read_file_by_file(attempt, self.uris, self.read, self.work, self.save))
        if len(self.uris) == 1 and attempt.given_up:
            return [given_up(self.uris[0])]
        records = [record for uri in self.uris for record in self.read(uri)]
        for record in records:
            self.work(record)
        return records

    def run(self, session="one"):
        for _ in range(100):
            try:
                return self.attempt(session)
            except WorkerEndedError:
                continue
        raise AssertionError("attempts without end")


def kinds(records):
    return ["drop" if isinstance(record, Drop) else "read" for record in records]


def test_a_group_without_a_bad_file_takes_one_attempt():
    group = Group(3)
    assert kinds(group.run()) == ["read"] * 3
    assert group.workers == 1


@pytest.mark.parametrize("way", ["bad", "bad_work"])
def test_only_the_file_that_ends_its_workers_is_given_up(way):
    group = Group(5, **{way: (2,)})
    records = group.run()
    assert kinds(records) == ["read", "read", "drop", "read", "read"]
    assert (records[2].source, records[2].reason) == ("/in/2.html", Reason.UNREADABLE)
    assert records[2].detail == "its reading ended the worker 3 times"
    assert group.workers == 2 * MAX_ENDED + 1


def test_several_bad_files_of_a_group_are_all_found():
    assert kinds(Group(5, bad=(0, 4)).run()) == ["drop", "read", "read", "read", "drop"]


def test_files_that_end_a_worker_only_together_are_given_up_together():
    last = None
    for _ in range(30):
        last = next_attempt(last, session="one", parts=0, files=2)
    assert last.given_up == (0, 1)


def test_a_file_of_its_own_is_given_up_after_three_workers():
    group = Group(1, bad=(0,))
    assert kinds(group.run()) == ["drop"]
    assert group.workers == MAX_ENDED + 1


def test_a_resumed_run_does_not_read_again_what_was_given_up():
    group = Group(5, bad=(2,))
    group.run("one")
    before = group.workers
    assert kinds(group.run("two")) == ["read", "read", "drop", "read", "read"]
    assert group.workers == before + 1


def test_a_job_that_is_killed_again_and_again_gives_up_nothing():
    last = None
    for n in range(30):
        last = next_attempt(last, session=f"run {n}", parts=0, files=1)
    assert (last.ended, last.given_up) == (0, ())


def test_a_worker_that_made_progress_is_not_held_against_the_file():
    last = None
    for parts in range(30):  # a machine that is taken away after each part
        last = next_attempt(last, session="one", parts=parts, files=1)
    assert (last.ended, last.given_up) == (1, ())


def test_what_was_complete_before_a_file_was_given_up_is_named():
    assert given_up("/in/a.json", 6).detail == (
        "its reading ended the worker 3 times; what follows its first 6 parts of records "
        "was not read"
    )
