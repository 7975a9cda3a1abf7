"""Claims on the lock of an output directory: at most one of several contenders succeeds.

**Disks** (`LocalFileSystem`, NFS included) create a name exclusively. Claims are numbered, and the
highest number holds the lock. A contender that finds the highest claim n released or dead creates
n + 1; of several contenders one succeeds. A slow contender may create a number that has been
removed in the meantime; it lists again and finds a higher one, since the highest is never removed,
not even on release. So no process holds the lock without having found every earlier claim released
or dead.

**Object stores** have no exclusive creation in pyarrow. A contender writes a claim under its own
name, waits `settle_s`, and lists: the live claim with the smallest (time stamp, token) wins.
Suppose that X and Y both win, and that X's claim is the smaller. Then Y's list did not contain it.
Y lists `settle_s` after its own claim was written, hence at least `settle_s` after X's time stamp.
But a claim that took longer than half of `settle_s` to write is deleted, so X's claim was visible
by then, provided that listings are consistent after a write (S3, GCS and Azure) and that time
stamps, rounded to a second, are wrong by less than the other half. Once held, the lock stays held:
later claims have later stamps.
"""

from __future__ import annotations

import json
import math
import os
import posixpath
import re
import socket
import time
import uuid
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import psutil
from pyarrow import fs as pafs

from ochat_ray.errors import UserError
from ochat_ray.run_dir import RunDir

RUN_FOLDER = ".run"
"""Folder of an output directory for the lock and the list of files that runs wrote there."""

LOCK_FOLDER = f"{RUN_FOLDER}/lock"

CLAIM_ATTEMPTS = 5
"""Attempts to write a claim to an object store that is too slow."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """Time constants of the lock protocol, in seconds."""

    beat_s: float = 10.0
    """Interval between heartbeats."""
    stale_s: float = 60.0
    """Age of a heartbeat from which its owner is declared dead."""
    settle_s: float = 5.0
    """Wait of a contender on an object store."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Owner:
    """Process that owns a claim."""

    token: str
    stage: str
    host: str
    machine: str
    """Host, boot and process namespace: the scope in which a process id is unique."""
    pid: int
    process_started: float
    """Start time of the process, used only for comparison, since process ids are reused."""
    started: float
    """Unix time of the claim, for messages."""

    @classmethod
    def current(cls, stage: str) -> Owner:
        """Return an owner for this process with a new token."""
        return cls(
            token=uuid.uuid4().hex,
            stage=stage,
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            process_started=_process_start(os.getpid()),
            started=time.time(),
        )

    @classmethod
    def parse(cls, data: bytes) -> Owner | None:
        """Parse the content of a claim file; None if the file is incomplete."""
        try:
            owner = cls(**json.loads(data))
            datetime.fromtimestamp(owner.started, UTC)
        except (ValueError, TypeError, OverflowError, OSError):
            return None
        numbers = isinstance(owner.pid, int) and isinstance(owner.process_started, int | float)
        return owner if numbers else None

    def is_alive(self) -> bool | None:
        """Return whether the process exists; None if that cannot be determined from this host."""
        if self.machine != _machine():
            return None
        start = _process_start(self.pid)
        if start == -math.inf and _is_hidden(self.pid):
            return None
        return abs(start - self.process_started) < 5.0


class Claims(Protocol):
    """One process's claim on the lock of a directory."""

    def take(self) -> None:
        """Claim the lock, or raise a UserError that names its owner."""

    def renew(self) -> bool:
        """Renew the heartbeat; return whether the lock is still held."""

    def is_held(self) -> bool:
        """Return whether the lock is still held."""

    def release(self) -> None:
        """Release the lock, so that the next run can claim it at once."""


_RELEASED = b'{"released": true}\n'


class DiskClaims:
    """Numbered files, created exclusively; the heartbeat is the file's modification time."""

    def __init__(self, run: RunDir, owner: Owner, timing: Timing) -> None:
        self._root, self._owner, self._timing = run.root, owner, timing
        self._folder = Path(run.path(LOCK_FOLDER))
        self._number = 0

    def take(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        while not self._number:
            highest = max(self._numbers(), default=0)
            if highest:
                self._refuse_if_live(self._path(highest))
            if not self._create(self._path(highest + 1)):
                continue  # another contender was faster: check its claim
            if max(self._numbers(), default=0) == highest + 1:
                self._number = highest + 1
        for number in self._numbers():
            if number < self._number:
                self._path(number).unlink(missing_ok=True)

    def renew(self) -> bool:
        try:
            os.utime(self._path(self._number))  # by the clock of the disk's server
        except FileNotFoundError:
            return False
        return self.is_held()

    def is_held(self) -> bool:
        return max(self._numbers(), default=0) == self._number

    def release(self) -> None:
        path, released = self._path(self._number), self._folder / f".released-{self._owner.token}"
        try:
            released.write_bytes(_RELEASED)
            released.replace(path)
        except OSError:  # a full disk: in place it takes no further space
            with path.open("r+b") as file:
                file.write(_RELEASED)
                file.truncate()
            released.unlink(missing_ok=True)

    def _create(self, path: Path) -> bool:
        """Create a claim with its content if the name is free; return whether it is ours."""
        text, draft = _json(self._owner), self._folder / f".draft-{self._owner.token}"
        try:
            draft.write_bytes(text)
            try:
                os.link(draft, path)
            except FileExistsError:
                # NFS may report our own name if the reply to a first request was lost.
                return path.exists() and path.read_bytes() == text
            except OSError:
                return _create_without_link(path, text)
        finally:
            draft.unlink(missing_ok=True)
        return True

    def _refuse_if_live(self, path: Path) -> None:
        try:
            with path.open("rb") as file:  # NFS asks the server for an opened file's time
                data, beat = file.read(), os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:
            return
        if data == _RELEASED:
            return
        _refuse_if_live(Owner.parse(data), self._now() - beat, self._timing, self._root)

    def _now(self) -> float:
        probe = self._folder / f".now-{self._owner.token}"
        probe.touch()
        now = probe.stat().st_mtime
        probe.unlink()
        return now

    def _numbers(self) -> list[int]:
        try:
            names = os.listdir(self._folder)
        except FileNotFoundError:
            return []
        return [number for name in names if (number := claim_number(name)) is not None]

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:08d}.json"


def _create_without_link(path: Path, text: bytes) -> bool:
    """Create a file exclusively on a disk without hard links; return whether it is ours."""
    try:
        with path.open("xb") as file:
            file.write(text)
    except FileExistsError:
        return False
    except OSError:  # a full disk; half a claim would count as another starting run
        path.unlink(missing_ok=True)
        raise
    return True


def claim_number(name: str) -> int | None:
    """Return the number of a claim's file; None if the file is something else."""
    return int(name[:-5]) if re.fullmatch(r"[0-9]{8,}\.json", name) else None


class StoreClaims:
    """Claims named by their tokens and written once, each with a separate heartbeat file."""

    def __init__(self, run: RunDir, owner: Owner, timing: Timing) -> None:
        self._run, self._owner, self._timing = run, owner, timing

    def take(self) -> None:
        self._run.fs.create_dir(self._run.path(LOCK_FOLDER), recursive=True)
        self._write_claim()
        time.sleep(self._timing.settle_s)
        self._write(self._beat, b"")  # its time stamp is the present
        stamps = self._stamps()
        now, own = stamps[self._beat], (stamps[self._claim], self._claim)
        try:
            for claim, stamp in sorted(stamps.items()):
                if claim != self._claim and claim.endswith(".json"):
                    beat = claim.removesuffix(".json") + ".beat"
                    age = now - max(stamp, stamps.get(beat, stamp))
                    self._refuse_or_remove(claim, age, earlier=(stamp, claim) < own)
        except UserError:
            self.release()
            raise

    def renew(self) -> bool:
        self._write(self._beat, b"")
        return self.is_held()

    def is_held(self) -> bool:
        return self._run.exists(self._claim)

    def release(self) -> None:
        for name in (self._claim, self._beat):
            self._run.remove(name)

    def _refuse_or_remove(self, claim: str, age: float, *, earlier: bool) -> None:
        try:
            with self._run.fs.open_input_stream(self._run.path(claim), compression=None) as stream:
                owner = Owner.parse(stream.read())
        except FileNotFoundError:
            return
        if earlier:
            _refuse_if_live(owner, age, self._timing, self._run.root)
        elif is_live(owner, age, self._timing):
            return  # the other contender lists after us and yields
        for name in (claim, claim.removesuffix(".json") + ".beat"):
            self._run.remove(name)

    def _write_claim(self) -> None:
        """Write the claim within half of `settle_s`, as the protocol requires."""
        bound = self._timing.settle_s / 2
        for _ in range(CLAIM_ATTEMPTS):
            begun = time.monotonic()
            self._write(self._claim, _json(self._owner))
            if time.monotonic() - begun <= bound:
                return
            self.release()
        raise UserError(
            f"{self._run.root} takes longer than {bound:g} s to write a small file, "
            f"{CLAIM_ATTEMPTS} times in a row; run it again"
        )

    @property
    def _claim(self) -> str:
        return f"{LOCK_FOLDER}/{self._owner.token}.json"

    @property
    def _beat(self) -> str:
        return f"{LOCK_FOLDER}/{self._owner.token}.beat"

    def _write(self, name: str, data: bytes) -> None:
        # In place: a rename is a copy on an object store and has a time stamp of its own.
        with self._run.fs.open_output_stream(self._run.path(name), compression=None) as stream:
            stream.write(data)

    def _stamps(self) -> dict[str, float]:
        selector = pafs.FileSelector(self._run.path(LOCK_FOLDER), allow_not_found=True)
        return {
            posixpath.join(LOCK_FOLDER, info.base_name): (info.mtime_ns or 0) / 1e9
            for info in self._run.fs.get_file_info(selector)
            if info.type == pafs.FileType.File
        }


def is_live(owner: Owner | None, age_s: float, timing: Timing) -> bool:
    alive = owner.is_alive() if owner else None
    # A heartbeat in the future was written before the disk's clock was set back.
    return abs(age_s) < timing.stale_s if alive is None else alive


def _refuse_if_live(owner: Owner | None, age_s: float, timing: Timing, root: str) -> None:
    """Raise a UserError that names the owner and what to do, unless the claim is dead."""
    if not is_live(owner, age_s, timing):
        return
    if owner is None:
        raise UserError(f"another run is starting in {root}; choose another --output, or wait")
    started = datetime.fromtimestamp(owner.started, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    expiry = (
        ""
        if owner.is_alive()
        else f"; if that process has died, wait {max(1.0, timing.stale_s - age_s):.0f} s"
    )
    raise UserError(
        f"{root} is in use by {owner.stage} on {owner.host} (pid {owner.pid}, started {started}, "
        f"last heartbeat {max(0.0, age_s):.0f} s ago); choose another --output, wait until it ends "
        f"or stop it{expiry}"
    )


def _json(value: Owner) -> bytes:
    return json.dumps(asdict(value)).encode() + b"\n"


def _process_start(pid: int) -> float:
    """Return the start time of a process; -inf if it does not exist or is a zombie.

    On Linux the unit is clock ticks since boot, which setting the clock does not change; elsewhere
    it is Unix time.
    """
    if Path("/proc/self/stat").exists():
        try:
            # After the program's name, which may hold spaces and brackets: state, ..., start.
            fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return -math.inf
        return -math.inf if fields[0] in b"ZX" else float(fields[19])
    try:
        process = psutil.Process(pid)
        ended = process.status() == psutil.STATUS_ZOMBIE
        return -math.inf if ended else process.create_time()
    except psutil.NoSuchProcess:
        return -math.inf


def _is_hidden(pid: int) -> bool:
    """Return whether the process may be another user's that /proc hides (`hidepid`)."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return False


@cache
def _machine() -> str:
    facts: list[Any] = [socket.gethostname()]
    try:
        facts += [
            Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            os.readlink("/proc/self/ns/pid"),
        ]
    except OSError:  # macOS
        facts.append(round(psutil.boot_time() / 60))
    return " ".join(map(str, facts))
