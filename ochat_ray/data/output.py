"""Output directory of prepare: tables, work folders, and a check for files of other programs.

The tasks of a run write only to its work folder. So a task that outlives its run, for example on a
node that lost its connection, cannot change the tables of another run.
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
"""Folders of the tables in docs/data-format.md."""

PLAN = "plan.json"
"""File of a work folder: identity of its run, and number of input groups."""

FINISHED = "tables"
"""Folder of a work folder for finished tables, which `publish` moves to the output directory."""

MOVERS = 16
"""Threads that move files: on an object store a move is a copy."""


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
        """Record a work folder as written by prepare; it is created with its first file."""
        return self._ownership.start_work(token)

    def unfinished(self) -> tuple[str, dict[str, Any]] | None:
        """Return token and plan of the last run that was killed here, if it has a plan."""
        for token in reversed(self._ownership.work_tokens()):
            plan = self.work(token).read_json(PLAN)
            if plan is not None:
                return token, plan
        return None

    def is_recorded(self) -> bool:
        """Return whether there is a record of the files that runs wrote here."""
        return self._ownership.is_recorded()

    def check_ownership(self) -> None:
        """Raise a UserError if a file that no run wrote has the place of a table."""
        self._ownership.check(self._present())

    def clear(self) -> None:
        """Delete the files of runs, the manifest first: without it the rest is not complete."""
        self._ownership.remove([MANIFEST, *self._present()])
        self.clear_work()

    def clear_work(self) -> None:
        """Delete work folders, including those that a late task has created again."""
        self._ownership.clear_work()

    def has_work(self) -> bool:
        """Return whether a work folder is left."""
        return self._ownership.has_work()

    def publish(self, work: RunDir, names: Iterable[str]) -> None:
        """Move files of a work folder's `tables/` to the output, unless they were moved before."""
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
        """Yield names of tables, reports and manifests that exist, unfinished ones included."""
        for name, is_folder in top_entries(self.run):
            if not is_folder and _is_place(final_name(name)):
                yield name
        for folder in TABLES:
            yield from files_below(self.run, folder)


def _is_place(name: str) -> bool:
    """Return whether prepare writes files of this name."""
    return name in (MANIFEST, REPORT) or name.split("/")[0] in TABLES
