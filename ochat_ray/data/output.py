"""Output directory of prepare: its tables, its work folders, and what of it no run wrote.

A run's tasks write in its work folder alone, so a task that outlives its run (a worker cut off from
a cluster, say) cannot reach the tables of another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from ochat_ray.ownership import Ownership, files_below, final_name, top_entries
from ochat_ray.run_dir import MANIFEST, RunDir

REPORT = "report.html"
TABLES = ("conversations", "dropped", "tokens")
"""Folders of the contract's tables."""

PLAN = "plan.json"
"""File of a work folder: what its run is, once that is settled."""

FINISHED = "tables"
"""Folder of a work folder for the contract's tables, which `publish` moves to their places."""

MOVERS = 16
"""Files that are moved at a time: on an object store a move is a copy."""


@dataclass(frozen=True, slots=True)
class Output:
    """An output directory, for the run that holds its lock."""

    run: RunDir

    @property
    def _ownership(self) -> Ownership:
        return Ownership(self.run, "prepare")

    def work(self, token: str) -> RunDir:
        """Return the work folder of a run."""
        return self._ownership.work(token)

    def start_work(self, token: str) -> RunDir:
        """Record a work folder as ours; it is created with its first file."""
        return self._ownership.start_work(token)

    def unfinished(self) -> tuple[str, dict[str, Any]] | None:
        """Token and plan of the run that was killed here last, if it has a plan."""
        for token in reversed(self._ownership.work_tokens()):
            plan = self.work(token).read_json(PLAN)
            if plan is not None:
                return token, plan
        return None

    def is_recorded(self) -> bool:
        """Return whether there is a record of what runs wrote here."""
        return self._ownership.is_recorded()

    def check_ownership(self) -> None:
        """Raise a UserError if a file that no run wrote lies where tables are to be written."""
        self._ownership.check(self._present())

    def clear(self) -> None:
        """Delete what runs wrote: the manifest first, so that what is left is not complete."""
        self._ownership.remove([MANIFEST, *self._present()])
        self.clear_work()

    def clear_work(self) -> None:
        """Delete work folders, those that a late task has created again included."""
        self._ownership.clear_work()

    def has_work(self) -> bool:
        """Return whether a work folder is left."""
        return self._ownership.has_work()

    def publish(self, work: RunDir, names: Iterable[str]) -> None:
        """Move files of a work folder's `tables/` to their places, except those that are there."""
        names = list(names)
        self._ownership.record([*names, REPORT, MANIFEST], instead_of=_is_place)
        folder = work.root.rstrip("/").rsplit("/", 1)[-1]

        def place(name: str) -> None:
            source = f"{folder}/{FINISHED}/{name}"
            if self.run.exists(source):
                self.run.move(source, name)

        with ThreadPoolExecutor(MOVERS) as pool:
            list(pool.map(place, names))

    def _present(self) -> Iterator[str]:
        """Names of files in the places of the contract's, unfinished ones included."""
        for name, is_folder in top_entries(self.run):
            if not is_folder and _is_place(final_name(name)):
                yield name
        for folder in TABLES:
            yield from files_below(self.run, folder)


def _is_place(name: str) -> bool:
    """Return whether a file of prepare's lies under this name."""
    return name in (MANIFEST, REPORT) or name.split("/")[0] in TABLES
