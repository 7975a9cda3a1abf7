"""The command `ochat-ray` of a wheel, installed where the checkout is not."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from ochat_ray.jobs.command import COMMANDS

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel"]
    subprocess.run([*build, "--directory", str(folder)], check=True, cwd=ROOT, capture_output=True)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="session")
def installed(wheel, tmp_path_factory):
    """Folder with the programs of an environment that has the wheel, and our dependencies."""
    folder = tmp_path_factory.mktemp("installed")
    make = [sys.executable, "-m", "venv", "--without-pip", str(folder)]
    subprocess.run(make, check=True)
    python = folder / "bin/python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    subprocess.run([*install, "--no-deps", "--no-index", str(wheel)], check=True)
    # A path in a .pth file brings packages, but not those that are installed as editable.
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin"


def run(installed, folder, *command):
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment["PATH"] = f"{installed}{os.pathsep}{environment['PATH']}"
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_the_package_is_the_wheel_s_own(installed, tmp_path):
    code = "import ochat_ray; print(ochat_ray.__file__)"
    done = run(installed, tmp_path, installed / "python", "-c", code)
    assert Path(done.stdout.strip()).is_relative_to(installed.parent)


def test_the_wheel_has_every_file_of_the_package(wheel):
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "ochat_ray"]
    files = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    present = {name for name in files.splitlines() if (ROOT / name).is_file()}
    assert present - set(zipfile.ZipFile(wheel).namelist()) == set()


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_without_a_command_all_are_listed(installed, tmp_path, arguments):
    done = run(installed, tmp_path, "ochat-ray", *arguments)
    assert done.returncode == 0
    listed = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")]
    assert listed == ["prepare", "train", "serve", "evaluate", "export", "status", "demo"]


def test_an_unknown_command_is_one_line_and_status_2(installed, tmp_path):
    done = run(installed, tmp_path, "ochat-ray", "bake")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "ochat-ray: unknown command 'bake'; "
        "choose prepare, train, serve, evaluate, export, status, demo\n"
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_shows_its_help(installed, tmp_path, command):
    done = run(installed, tmp_path, "ochat-ray", command, "--help")
    assert done.returncode == 0, done.stderr
    assert "ochat-ray" in done.stdout


def test_an_error_names_the_command(installed, tmp_path):
    done = run(installed, tmp_path, "ochat-ray", "train", "--recipe", "chat")
    assert done.returncode == 2
    assert done.stderr == "ochat-ray train: --model is needed with --recipe chat\n"


def test_a_former_option_of_evaluate_is_accepted(installed, tmp_path):
    done = run(installed, tmp_path, "ochat-ray", "evaluate", "--at-once", "0")
    assert (
        done.stderr.splitlines()[-1] == "ochat-ray evaluate: --max-concurrency must be at least 1"
    )
