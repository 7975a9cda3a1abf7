"""Ownership of what lies in an output directory: nothing is deleted that no run wrote.

`.run/written.json` names the files and work folders that runs wrote, each before it is there. A
folder `.work-TOKEN` belongs to one run: its tasks write nowhere else, so a task that outlives its
run (a worker cut off from a cluster, say) cannot reach the tables of another.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeGuard

from pyarrow import fs as pafs

from ochat_ray.errors import UserError
from ochat_ray.lock_claims import RUN_FOLDER
from ochat_ray.run_dir import MANIFEST, RunDir

RECORD = f"{RUN_FOLDER}/written.json"
REPORT = "report.html"
TABLES = ("conversations", "dropped", "tokens")
"""Folders of the contract's tables."""

PLAN = "plan.json"
"""File of a work folder: what its run is, once that is settled."""

FINISHED = "tables"
"""Folder of a work folder for the contract's tables, which `publish` moves to their places."""

MOVERS = 16
"""Files that are moved at a time: on an object store a move is a copy."""

KEPT_NAMES = 100
"""Names of earlier work folders that stay recorded, since a late task may create one again."""

_UNFINISHED = re.compile(r"\.tmp-[0-9a-f]{32}-")
_WORK = re.compile(r"\.work-[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Output:
    """An output directory, for the run that holds its lock."""

    run: RunDir

    def work(self, token: str) -> RunDir:
        """Return the work folder of a run."""
        return RunDir(self.run.fs, self.run.path(_work(token)))

    def start_work(self, token: str) -> RunDir:
        """Record a work folder as ours; it is created with its first file."""
        record = self._record()
        self._write_record(record["files"], [*record["work"][-KEPT_NAMES:], _work(token)])
        return self.work(token)

    def unfinished(self) -> tuple[str, dict[str, Any]] | None:
        """Token and plan of the run that was killed here last, if it has a plan."""
        for name in reversed(self._record()["work"]):
            token = name.removeprefix(_work(""))
            plan = self.work(token).read_json(PLAN)
            if plan is not None:
                return token, plan
        return None

    def is_recorded(self) -> bool:
        """Return whether there is a record of what runs wrote here."""
        return self.run.exists(RECORD)

    def check_ownership(self) -> None:
        """Raise a UserError if a file that no run wrote lies where tables are to be written."""
        ours = {*self._record()["files"]}
        for name in self._present():
            if _UNFINISHED.sub("", name, count=1) not in ours:
                raise UserError(
                    f"{self.run.path(name)} was not written by a run of prepare, which writes "
                    f"files of such names; choose another --output, or remove it"
                )

    def clear(self) -> None:
        """Delete what runs wrote: the manifest first, so that what is left is not complete."""
        ours = {*self._record()["files"]}
        if MANIFEST in ours:
            self.run.remove(MANIFEST)
        for name in self._present():
            if _UNFINISHED.sub("", name, count=1) in ours:
                self.run.remove(name)
        self.clear_work()

    def clear_work(self) -> None:
        """Delete work folders, those that a late task has created again included."""
        for name in self._record()["work"]:
            self.run.remove(name)

    def has_work(self) -> bool:
        """Return whether a work folder is left."""
        return any(self.run.exists(name) for name in self._record()["work"])

    def publish(self, work: RunDir, names: Iterable[str]) -> None:
        """Move files of a work folder's `tables/` to their places, except those that are there."""
        names = list(names)
        record = self._record()
        self._write_record([*names, REPORT, MANIFEST], record["work"])
        folder = work.root.rstrip("/").rsplit("/", 1)[-1]

        def place(name: str) -> None:
            source = f"{folder}/{FINISHED}/{name}"
            if self.run.exists(source):
                self.run.move(source, name)

        with ThreadPoolExecutor(MOVERS) as pool:
            list(pool.map(place, names))

    def _present(self) -> Iterator[str]:
        """Names of files in the places of the contract's, unfinished ones included."""
        fs, root = self.run.fs, self.run.root
        for info in fs.get_file_info(pafs.FileSelector(root, allow_not_found=True)):
            if info.type == pafs.FileType.File:
                name = info.base_name
                if _UNFINISHED.sub("", name, count=1) in (MANIFEST, REPORT):
                    yield name
        for folder in TABLES:
            selector = pafs.FileSelector(self.run.path(folder), True, recursive=True)
            for info in fs.get_file_info(selector):
                if info.type == pafs.FileType.File:
                    yield info.path.removeprefix(root).lstrip("/")

    def _record(self) -> dict[str, list[str]]:
        record = self.run.read_json(RECORD)
        if record is None:
            return {"files": [], "work": []}
        if not (
            isinstance(record, dict)
            and _is_names(files := record.get("files"))
            and _is_names(work := record.get("work"))
        ):
            raise UserError(
                f"{self.run.path(RECORD)}, which lists what runs wrote here, is damaged; choose "
                f"another --output, or remove {self.run.root}"
            )
        return {"files": files, "work": [name for name in work if _WORK.fullmatch(name)]}

    def _write_record(self, files: list[str], work: list[str]) -> None:
        self.run.write_json(RECORD, {"files": files, "work": work})


def _is_names(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _work(token: str) -> str:
    return f".work-{token}"
