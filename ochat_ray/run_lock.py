"""Lock of an output directory: one run at a time, on a disk, a network disk or an object store.

The lock is stored in the directory itself, so it also works between hosts that share nothing else.
Its owner renews a heartbeat from a thread. A claim is live while its process exists, if this
process can check that, and otherwise while its heartbeat is recent. Ages are differences of two
time stamps of the disk's or store's clock, so the hosts' clocks need not agree. `lock_claims.py`
describes the protocol by which exactly one of several contenders gets the lock.

**A paused owner** (a laptop asleep, a stopped virtual machine) may be declared dead. It finds its
claim superseded at its next heartbeat or `check`, and stops. The time between its last `check` and
the following write is not protected. No file system rejects that write, so readers verify tables
against their manifest.
"""

from __future__ import annotations

import posixpath
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pyarrow import fs as pafs

from ochat_ray.errors import UserError
from ochat_ray.lock_claims import (
    LOCK_FOLDER,
    Claims,
    DiskClaims,
    Owner,
    StoreClaims,
    Timing,
    claim_number,
)
from ochat_ray.run_dir import RunDir


class RunLock:
    """A lock that this process holds until `hold` ends, unless another run takes it over."""

    def __init__(self, run: RunDir, claims: Claims, beat_s: float, token: str) -> None:
        self._run, self._claims, self._beat_s = run, claims, beat_s
        self.token = token
        """Name of this claim, for `check_held` in other processes of the run."""
        self._lost, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._beat, name="run-lock", daemon=True)

    @property
    def is_lost(self) -> bool:
        """Return whether a heartbeat or `check` found the lock taken over, without a new check."""
        return self._lost.is_set()

    def check(self) -> None:
        """Check on the disk or store that this process still holds the lock.

        Raises:
            UserError: another run has taken it over, or the claim was deleted.
        """
        if self.is_lost or not self._claims.is_held():
            self._lost.set()
            raise _taken_over(self._run)

    def _beat(self) -> None:
        while not self._stop.wait(self._beat_s):
            try:
                if not self._claims.renew():
                    self._lost.set()
                    return
            except OSError:  # the store does not answer; the claim ages until it does
                continue

    def _end(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(self._beat_s)
        if not self.is_lost:
            # A claim that remains counts as dead: its process has ended, or its heartbeat is old.
            with suppress(OSError):
                self._claims.release()


@contextmanager
def hold(run: RunDir, stage: str, timing: Timing | None = None) -> Iterator[RunLock]:
    """Hold the lock of an output directory; messages of other runs name `stage`.

    Raises:
        UserError: another run holds it; a file has the name of its folder; or the block failed
            after the lock was lost, which explains missing files.
    """
    timing = timing or Timing()
    owner = Owner.current(stage)
    claims: Claims = (
        DiskClaims(run, owner, timing)
        if isinstance(run.fs, pafs.LocalFileSystem)
        else StoreClaims(run, owner, timing)
    )
    try:
        claims.take()
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise UserError(
            f"{run.root} cannot be an output directory: {error.filename or run.root} is in the way "
            f"({error.strerror or error}); choose another --output, or remove it"
        ) from error
    except FileNotFoundError as error:  # a folder cannot be created there, such as in /proc
        raise UserError(
            f"{run.root} cannot be an output directory ({error}); choose another --output"
        ) from error
    lock = RunLock(run, claims, timing.beat_s, owner.token)
    lock._thread.start()
    try:
        yield lock
    except Exception:
        with suppress(OSError):
            lock.check()
        raise
    finally:
        lock._end()


def check_held(run: RunDir, token: str) -> None:
    """Check on the disk or store that the claim of this token still holds the lock.

    For processes of a run on other nodes, which may outlive the process that holds the lock.

    Raises:
        UserError: another run has taken the lock over, or the run that held it has ended.
    """
    if not isinstance(run.fs, pafs.LocalFileSystem):
        if run.exists(f"{LOCK_FOLDER}/{token}.json"):
            return
        raise _taken_over(run)
    files = run.files(LOCK_FOLDER, ".json")
    numbers = {file: claim_number(posixpath.basename(file)) or 0 for file in files}
    with suppress(FileNotFoundError):
        highest = max(files, key=numbers.__getitem__, default=None)  # it holds the lock
        owner = Owner.parse(Path(run.path(highest)).read_bytes()) if highest else None
        if owner is not None and owner.token == token:
            return
    raise _taken_over(run)


def _taken_over(run: RunDir) -> UserError:
    return UserError(
        f"another run has taken over {run.root}, or its folder {LOCK_FOLDER} was "
        "deleted; this run stops without a result: run it again when the other has ended"
    )
