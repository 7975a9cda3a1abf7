"""Ownership of what lies in an output directory: nothing is deleted that no run wrote.

`.run/written.json` names the files and work folders that runs wrote, each recorded before it is
written. Only recorded names are deleted, and a name that is not recorded is never written over. A
folder `.work-TOKEN` belongs to one run, with everything in it: a task that outlives its run (a
worker cut off from a cluster, say) writes there and reaches nothing of another run. Where a library
chooses a file's name, the run has it end in the token, which no other file's name does.
"""

from __future__ import annotations

import os
import posixpath
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeGuard

from pyarrow import fs as pafs

from ochat_ray.errors import UserError
from ochat_ray.lock_claims import RUN_FOLDER
from ochat_ray.run_dir import RunDir

RECORD = f"{RUN_FOLDER}/written.json"

KEPT_NAMES = 100
"""Names of earlier work folders that stay recorded, since a late task may create one again."""

TORN_READS = 3
"""Times that a record on an object store is read again before it counts as damaged."""

_UNFINISHED = re.compile(r"\.tmp-[0-9a-f]{32}-")
_WORK = re.compile(r"\.work-[0-9a-f]{32}")


def final_name(name: str) -> str:
    """Return the name that a file has once it is written; half-written ones have a prefix."""
    return _UNFINISHED.sub("", name, count=1)


def work_name(token: str) -> str:
    """Return the name of a run's work folder."""
    return f".work-{token}"


@dataclass(frozen=True, slots=True)
class Ownership:
    """Record of the names that runs of a `stage` wrote, for the run that holds the lock."""

    run: RunDir
    stage: str

    def is_recorded(self) -> bool:
        """Return whether there is a record of what runs wrote here."""
        return self.run.exists(RECORD)

    def files(self) -> frozenset[str]:
        """Return the names of all recorded files, relative to the directory."""
        return frozenset(self._record()["files"])

    def owned(self, names: Iterable[str]) -> list[str]:
        """Return those of the names that runs recorded, or that end in a recorded token."""
        record = self._record()
        files, tokens = {*record["files"]}, {*self.work_tokens()}
        return [n for n in names if final_name(n) in files or n.rpartition(".")[2] in tokens]

    def record(
        self, names: Iterable[str], *, instead_of: Callable[[str], bool] | None = None
    ) -> None:
        """Record files that are about to be written; forget those for which `instead_of` holds."""
        record = self._record()
        known = [n for n in record["files"] if instead_of is None or not instead_of(n)]
        files = list(dict.fromkeys([*known, *names]))
        if files != record["files"]:
            self._write(files, record["work"])

    def check(self, names: Iterable[str]) -> None:
        """Raise a UserError for the first name that is there and that no run wrote."""
        names = list(names)
        ours = {*self.owned(names)}
        for name in names:
            if name not in ours and _is_there(self.run, name):
                raise UserError(
                    f"{self.run.path(name)} was not written by a run of {self.stage}, which writes "
                    f"files of such names; choose another --output, or remove it"
                )

    def remove(self, names: Iterable[str]) -> None:
        """Delete those of the files that runs wrote; others, and folders, stay."""
        for name in self.owned(names):
            if is_safe(name) and _is_file(self.run, name):
                self.run.fs.delete_file(self.run.path(name))

    def forget(self, names: Iterable[str]) -> None:
        """Remove names of files that are gone from the record."""
        gone = {*names}
        self.record((), instead_of=gone.__contains__)

    def work(self, token: str) -> RunDir:
        """Return the work folder of a run."""
        return RunDir(self.run.fs, self.run.path(work_name(token)))

    def start_work(self, token: str) -> RunDir:
        """Record a work folder as ours; it is created with its first file."""
        record = self._record()
        self._write(record["files"], [*record["work"][-KEPT_NAMES:], work_name(token)])
        return self.work(token)

    def work_tokens(self) -> list[str]:
        """Return the tokens of the recorded work folders, the latest run's last."""
        return [name.removeprefix(work_name("")) for name in self._record()["work"]]

    def clear_work(self) -> None:
        """Delete work folders, those that a late task has created again included."""
        for name in self._record()["work"]:
            self.run.remove(name)

    def has_work(self) -> bool:
        """Return whether a work folder is left."""
        return any(self.run.exists(name) for name in self._record()["work"])

    def _record(self) -> dict[str, list[str]]:
        record = self._read()
        if record is None:
            return {"files": [], "work": []}
        if not (
            isinstance(record, dict)
            and _is_names(files := record.get("files"))
            and _is_names(work := record.get("work"))
        ):
            raise UserError(
                f"{self.run.path(RECORD)}, which lists what runs wrote here, is damaged; "
                f"{self._advice}"
            )
        return {"files": files, "work": [name for name in work if _WORK.fullmatch(name)]}

    def _read(self) -> Any | None:
        """Return the record's content; of an object store again, where it came torn.

        A file that is replaced between the request for its size and the one for its bytes is read
        as the new one's first bytes.
        """
        for _ in range(0 if isinstance(self.run.fs, pafs.LocalFileSystem) else TORN_READS):
            with suppress(UserError):
                return self.run.read_json(RECORD, self._advice)
            time.sleep(0.2)
        return self.run.read_json(RECORD, self._advice)

    @property
    def _advice(self) -> str:
        """Advice about a damaged record: without it, no file there is known as a run's."""
        return f"choose another --output, or remove {self.run.root}"

    def _write(self, files: list[str], work: list[str]) -> None:
        self.run.write_json(RECORD, {"files": files, "work": work})


def top_entries(run: RunDir) -> Iterator[tuple[str, bool]]:
    """Yield name and whether it is a folder of what lies in the directory itself; links are not."""
    if isinstance(run.fs, pafs.LocalFileSystem):  # unlike Arrow, with names that are not UTF-8
        with suppress(FileNotFoundError), os.scandir(run.root) as entries:
            yield from [(e.name, e.is_dir(follow_symlinks=False)) for e in entries]
        return
    for info in run.fs.get_file_info(pafs.FileSelector(run.root, allow_not_found=True)):
        yield info.base_name, info.type == pafs.FileType.Directory


def files_below(run: RunDir, folder: str) -> Iterator[str]:
    """Yield the names of the files in a folder and its folders, unfinished ones included."""
    selector = pafs.FileSelector(run.path(folder), allow_not_found=True, recursive=True)
    for info in run.fs.get_file_info(selector):
        if info.type == pafs.FileType.File:
            yield info.path.removeprefix(run.root).lstrip("/")


def remove_empty_parents(run: RunDir, names: Iterable[str], below: str) -> None:
    """Delete the folders of these files, up to those directly in `below`, that hold nothing."""
    parents = set[str]()
    for name in names:
        while (name := posixpath.dirname(name)).startswith(f"{below}/"):
            parents.add(name)
    for folder in sorted(parents, key=lambda folder: folder.count("/"), reverse=True):
        if isinstance(run.fs, pafs.LocalFileSystem):
            with suppress(OSError):  # something lies in it
                os.rmdir(run.path(folder))
        elif not run.fs.get_file_info(pafs.FileSelector(run.path(folder), allow_not_found=True)):
            run.remove(folder)


def is_safe(name: str) -> bool:
    """Return whether a name stays below the directory; a damaged record may lead elsewhere."""
    return posixpath.normpath(name) == name and not name.startswith(("/", ".."))


def _is_file(run: RunDir, name: str) -> bool:
    kind = run.fs.get_file_info(run.path(name)).type
    return kind != pafs.FileType.Directory and _is_there(run, name)


def _is_there(run: RunDir, name: str) -> bool:
    if isinstance(run.fs, pafs.LocalFileSystem):
        return os.path.lexists(run.path(name))  # links that lead nowhere included
    return run.exists(name)


def _is_names(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)
