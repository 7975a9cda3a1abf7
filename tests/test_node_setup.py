"""The scripts of deploy/ that set nodes up, with fake programs and devices."""

import importlib.metadata
import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
CHECK = ROOT / "ochat_ray/check_node.sh"
PIN = ROOT / "deploy/aws/pin_image.sh"


def program(folder, name, text):
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def node(tmp_path):
    """Check a node: its glibc, its Python and pip, and its GPU's driver (None: no GPU)."""

    def check(*, glibc="glibc 2.39", python="3.12", pip=0, driver=None, env=None):
        programs, devices, home = (tmp_path / name for name in ("bin", "devices", "home"))
        for folder in (programs, home, devices / "0000:00:1e.0"):
            folder.mkdir(parents=True)
        program(programs, "getconf", f"echo {glibc}" if glibc else "exit 1")
        has = f'[ "$1" = -m ] && exit {pip}; echo {python}'
        program(programs, "python3", has if python else "exit 127")
        vendor, kind = ("0x1d0f", "0x020000") if driver is None else ("0x10de", "0x030200")
        (devices / "0000:00:1e.0/vendor").write_text(vendor + "\n")
        (devices / "0000:00:1e.0/class").write_text(kind + "\n")
        program(programs, "nvidia-smi", f"echo {driver}; echo {driver}" if driver else "exit 9")
        if driver == "hangs":  # as for a GPU that has failed; a minute is over at once
            program(programs, "nvidia-smi", "sleep 600")
            program(programs, "timeout", "exit 124")
        if env is not None:
            (home / "env/bin").mkdir(parents=True)
            program(home / "env/bin", "python", f"echo {env}" if env else "exit 1")
        done = subprocess.run(
            ["sh", CHECK, devices],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={"PATH": f"{programs}:/usr/bin:/bin", "HOME": str(home)},
        )
        assert done.stdout == ""
        return done.returncode, done.stderr

    return check


@pytest.mark.parametrize(
    "good",
    [
        {}, {"driver": "595.91.07"}, {"driver": "580.65.06"}, {"glibc": "glibc 2.31"},
        {"glibc": "glibc 2.100"}, {"python": "3.8"}, {"python": "", "env": "3.11"},
    ],
)  # fmt: skip
def test_a_node_for_our_pins_passes_without_a_word(node, good):
    assert node(**good) == (0, "")


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        ({"glibc": "glibc 2.27"}, "glibc is 2.27, and the wheels need 2.31"),  # Ubuntu 18.04
        ({"glibc": ""}, "no glibc"),
        ({"python": "3.6"}, "python3 is 3.6"),
        ({"python": ""}, "no python3"),
        ({"pip": 1}, "has no pip"),
        ({"driver": "470.57.02"}, "the NVIDIA driver is 470.57.02, and torch needs 580"),
        ({"driver": ""}, "finds no driver"),
        ({"driver": "hangs"}, "finds no driver"),
        ({"env": ""}, "home/env/bin/python does not start; remove "),  # its Python was upgraded
        ({"env": "3.9"}, "home/env has Python 3.9, and 3.11 is needed; remove "),
    ],
)
def test_another_node_is_refused_in_one_line(node, bad, text):
    status, line = node(**bad)
    assert status == 1
    assert line.count("\n") == 1
    assert text in line


def test_it_checks_what_the_installed_wheels_need():
    def glibc_of(package):
        tags = importlib.metadata.distribution(package).read_text("WHEEL")
        return min(int(minor) for minor in re.findall(r"manylinux_2_(\d+)_", tags))

    needed = dict(re.findall(r"^(\w+)_needed=(\S+)", CHECK.read_text(), re.MULTILINE))
    wheels = [glibc_of(package) for package in ("pyarrow", "rensa", "llguidance")]
    assert needed["glibc"] == f"2.{max(wheels)}"
    # torch 2.13 on PyPI is for CUDA 13.0, whose first driver is 580.
    assert re.search(r"^torch==2\.13\.", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert needed["driver"] == "580"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">={needed['env']}"


TORCH_NEEDS = """
cuda-bindings>=13.0.3,<14 cuda-toolkit==13.0.3 nvidia-cuda-cupti==13.0.* nvidia-cuda-nvrtc==13.0.*
nvidia-cuda-runtime==13.0.* nvidia-nvtx==13.0.* nvidia-cudnn-cu13==9.20.0.48
nvidia-cusparselt-cu13==0.8.1 nvidia-nccl-cu13==2.29.7 nvidia-nvshmem-cu13==3.4.5 triton==3.7.1
"""
"""Requirements of torch 2.13.0's wheel on PyPI, and of cuda-toolkit 13.0.3, on Linux.

The CPU build of torch, which may be installed here, has none of them, so an installation here does
not show whether pip finds a solution on a node.
"""


def test_the_pins_are_those_that_torch_needs_on_a_node():
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M))
    assert pins["torch"] == "2.13.0"
    for needed in map(Requirement, TORCH_NEEDS.split()):
        assert needed.specifier.contains(pins[needed.name]), needed


@pytest.fixture
def pin(tmp_path):
    """Run pin_image.sh on a copy of cluster.yaml, with an `aws` that gives this answer."""
    file = tmp_path / "cluster.yaml"
    file.write_text((ROOT / "cluster.yaml").read_text())

    def run(answer):
        program(tmp_path, "aws", f'echo "$@" > {tmp_path}/asked; echo {answer}')
        done = subprocess.run(
            ["sh", PIN, file],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        )
        return done, file.read_text(), (tmp_path / "asked").read_text()

    return run


def test_the_image_is_pinned_and_pinned_again(pin):
    before = (ROOT / "cluster.yaml").read_text()
    for image in ("ami-0123456789abcdef0", "ami-00000000000000001"):
        done, after, asked = pin(image)
        assert done.returncode == 0, done.stderr
        changed = [
            line
            for line, old in zip(after.splitlines(), before.splitlines(), strict=True)
            if line != old
        ]
        assert [line.strip() for line in changed] == [f"ImageId: &image {image}"]
    assert "--region us-west-2 " in asked
    (name,) = re.findall(r"&image resolve:ssm:(\S+)", before)
    assert f"--name {name} " in asked


def test_without_an_image_the_file_stays(pin):
    done, after, _ = pin("None")
    assert done.returncode == 1
    assert after == (ROOT / "cluster.yaml").read_text()
