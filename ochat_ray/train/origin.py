"""Origin of a model: the data, and the code that trained it."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "ochat-ray torch transformers tokenizers deepspeed ray safetensors peft bitsandbytes".split()
)

_OF_DATA = ("model_type", "template", "context_length", "tokenizer")


def origin_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of ochat.json on the data, the packages' versions and our commit.

    Args:
        manifest: Manifest of the data.
    """
    data = {name: manifest[name] for name in _OF_DATA if name in manifest}
    return {**data, "data_digest": manifest["digest"], "versions": versions(), "commit": commit()}


def versions() -> dict[str, str]:
    """Return the installed versions of the packages that a result may depend on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # our own code that was sent with a job
            continue
    return found


def commit(package: Path | None = None) -> str | None:
    """Return the git commit of this package's code; None if it is not in a checkout of its own.

    "+changes" is appended if files of the package differ from the commit. An installed package may
    lie in another project's checkout, of which it is no part.

    Args:
        package: Folder of the package; default: the running one.
    """
    folder = package or Path(__file__).parents[1]
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    found = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--", ".")
    return f"{found}+changes" if found and changes else found


def _git(folder: Path, *arguments: str) -> str | None:
    """Return the output of a git command; None if it fails, or without git."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "--no-optional-locks", *arguments],
            capture_output=True, text=True, check=False, timeout=30,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
