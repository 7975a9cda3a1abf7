"""Hosts made of Linux namespaces on one machine: a bridge between them, a real sshd on each.

A host has its own network, processes, names and semaphores, its own /tmp, /dev/shm and /run, and
its own view of root's home and of this Python environment, which other hosts do not see it write
to; all share the operators that torch compiles. The project's checkout is hidden there: what a host
runs came to it over SSH. There is no way out of the bridge, so that hosts install from a folder of
wheels.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
VENV = Path(sys.prefix)
NETWORK = f"10.77.{os.environ.get('PYTEST_XDIST_WORKER', 'gw0').removeprefix('gw')}"
CLIENT = f"{NETWORK}.254"
"""The address of this side of the bridge: the client's, outside of all hosts."""

INIT = Path(__file__).with_name("init.sh")
NEEDED = ("ip", "tc", "setpriv", "unshare", "nsenter", "sshd", "rsync", "ssh", "ssh-keygen")


def why_not() -> str:
    """Why there can be no hosts here; empty where there can."""
    if os.geteuid() != 0:
        return "only root may make hosts"
    if missing := [name for name in NEEDED if not _which(name)]:
        return f"not installed: {', '.join(missing)} (openssh-server, iproute2, rsync)"
    tried = subprocess.run(
        ["unshare", "--net", "--pid", "--mount", "--uts", "--ipc", "--fork", "true"],
        capture_output=True,
        check=False,
    )
    return "" if tried.returncode == 0 else "no right to make namespaces"


def _which(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


class Host:
    """One host; `number` is the last of its address."""

    def __init__(self, number: int, folder: Path, bridge: str) -> None:
        self.number, self.address = number, f"{NETWORK}.{number}"
        self.folder = folder / f"host-{number}"
        self.folder.mkdir()
        self._link = f"{bridge}-{number}"
        environment = os.environ | {
            "HOST_NAME": f"host-{number}",
            "HOST_FOLDER": str(self.folder),
            "VENV": str(VENV),
            "SETUP": str(folder),
            "CHECKOUT": str(ROOT),
            "SSHD": str(_which("sshd")),
        }
        self._outer = subprocess.Popen(
            # All end with this process, however it ends.
            ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--pid", "--mount",
             "--uts", "--ipc", "--fork", "--kill-child", "bash", str(INIT)],
            env=environment, stdin=subprocess.DEVNULL,
            stdout=(self.folder / "init.log").open("w"), stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        self._init = self._first_process()
        _run(f"ip link add {self._link} type veth peer name eth0 netns {self._init}")
        _run(f"ip link set {self._link} master {bridge} up")
        self.inside(f"ip address add {self.address}/24 dev eth0")
        self.inside("ip link set eth0 up")
        self.inside(f"ip route add default via {CLIENT}")

    def _first_process(self) -> int:
        """The process with number 1 there, as this side counts."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            children = psutil.Process(self._outer.pid).children()
            if children and (self.folder / "ready").exists():
                return children[0].pid
            assert self._outer.poll() is None, (self.folder / "init.log").read_text()
            time.sleep(0.05)
        raise TimeoutError((self.folder / "init.log").read_text())

    def inside(self, command: str, **options: object) -> subprocess.CompletedProcess[str]:
        """Run a command on the host, as if at its keyboard."""
        return subprocess.run(
            ["nsenter", f"--target={self._init}", "--all", "bash", "-c", command],
            check=True,
            capture_output=True,
            text=True,
            **options,
        )

    def rays(self) -> list[str]:
        """The command lines of Ray's processes there, and of the jobs' that it started."""
        if self._outer.poll() is not None:
            return []
        lines = self.inside("ps -ewwo args").stdout.splitlines()
        return [line for line in lines if "ray::" in line or "/ray/" in line or "jobs/" in line]

    def unplug(self) -> None:
        """Pull its network cable."""
        _run(f"ip link set {self._link} down")

    def plug(self) -> None:
        """Put it back."""
        _run(f"ip link set {self._link} up")

    def slow_down(self) -> None:
        """Two megabytes a second, as through a bad cable."""
        self.inside("tc qdisc add dev eth0 root tbf rate 16mbit burst 32kbit latency 400ms")

    def speed_up(self) -> None:
        """A good cable again."""
        self.inside("tc qdisc del dev eth0 root")

    def crash(self) -> None:
        """End all its processes but sshd, which nobody reaches any more: its link is down."""
        self.inside("kill -9 -1")
        self.unplug()

    def boot(self) -> None:
        """Come back after a crash: with its disk, without what was in memory."""
        self.inside("rm -rf /tmp/* /dev/shm/*")
        self.plug()

    def power_off(self) -> None:
        """End it for good."""
        if self._outer.poll() is None:
            os.kill(self._init, signal.SIGKILL)
            self._outer.wait(20)


class Hosts:
    """Hosts on a bridge, with an SSH key that opens them; all are gone at the end.

    `ssh` is the command that logs in to one. `folder` has what they start with: `bashrc` is each
    one's ~/.bashrc. `disk` is one that they all mount, and that has a size.
    """

    def __init__(self) -> None:
        _remove_what_is_of_the_dead()
        self._bridge = f"{_NAME}{os.getpid()}"
        self.folder = folder = _FOLDERS / self._bridge
        self.key, self.disk = folder / "key", folder / "disk"
        self.disk.mkdir(parents=True)
        _run(f"mount -t tmpfs -o size=64m tmpfs {self.disk}")
        _run(f"ssh-keygen -q -t ed25519 -N '' -f {self.key}")
        _run(f"ssh-keygen -q -t ed25519 -N '' -f {folder / 'host_key'}")
        self.ssh = (
            f"ssh -i {self.key} -l root -o LogLevel=ERROR -o StrictHostKeyChecking=no "
            "-o UserKnownHostsFile=/dev/null"
        )
        wheels = folder / "wheels"  # what pip builds an editable install of this project with
        _run(f"{sys.executable} -m pip download -q -d {wheels} hatchling editables")
        _run(f"ip link add {self._bridge} type bridge")
        self.all: list[Host] = []
        _run(f"ip address add {CLIENT}/24 dev {self._bridge}")
        _run(f"ip link set {self._bridge} up")

    def add(self, count: int) -> list[Host]:
        """Start so many more."""
        for _ in range(count):
            self.all.append(Host(len(self.all) + 1, self.folder, self._bridge))
        return self.all[-count:]

    def resize_disk(self, mebibytes: int) -> None:
        """Give the disk of all another size."""
        _run(f"mount -o remount,size={mebibytes}m {self.disk}")

    def close(self) -> None:
        """Power all off, and take away what they shared."""
        for host in self.all:
            host.power_off()
        _remove(self._bridge)


_NAME = "ochat"
_FOLDERS = Path("/var/tmp/ochat-hosts")  # not below /tmp, which hosts have of their own


def _remove_what_is_of_the_dead() -> None:
    _FOLDERS.mkdir(exist_ok=True)
    for name in {*os.listdir("/sys/class/net"), *os.listdir(_FOLDERS)}:
        owner = name.removeprefix(_NAME)
        if owner != name and owner.isdecimal() and not psutil.pid_exists(int(owner)):
            _remove(name)


def _remove(name: str) -> None:
    """The bridge of this name, and the folder."""
    with suppress(subprocess.CalledProcessError):  # it is gone, or another run removes it, too
        _run(f"ip link del {name}")
    folder = _FOLDERS / name
    if (folder / "disk").is_mount():
        with suppress(subprocess.CalledProcessError):
            _run(f"umount --lazy {folder / 'disk'}")
    shutil.rmtree(folder, ignore_errors=True)


def _run(command: str) -> None:
    subprocess.run(command, shell=True, check=True, capture_output=True, text=True)
