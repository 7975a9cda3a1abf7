"""Check a DeepSpeed configuration with DeepSpeed's own reader; run as a process of its own.

`python -m ochat_ray.train.deepspeed_check` reads a configuration from standard input. DeepSpeed
ignores keys that it does not know outside of its pydantic models, so the keys that it looks up are
recorded, and others are reported. A process of its own keeps the import, which takes seconds and
prints, away from the job, and has no accelerator to choose.
"""

from __future__ import annotations

import difflib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from ochat_ray.errors import UserError


def check_with_deepspeed(path: str, config: dict[str, Any]) -> None:
    """Raise a UserError for the first key or value that DeepSpeed does not know.

    Args:
        path: the user's file, for the message.
        config: the configuration with the user's laid over it, for one worker.
    """
    done = subprocess.run(
        [sys.executable, "-m", "ochat_ray.train.deepspeed_check"],
        input=json.dumps(config),
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"DS_ACCELERATOR": "cpu", "WORLD_SIZE": "1"},
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        raise UserError(
            f"--deepspeed: {path} could not be checked, since DeepSpeed does not start: "
            f"{(done.stderr.strip().splitlines() or ['no output'])[-1]}"
        )
    if problem := json.loads(lines[-1]):
        raise UserError(f"--deepspeed: {path} {problem}")


class Traced(dict[str, Any]):
    """A dictionary that records which of its keys were looked up."""

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__({k: Traced(v) if isinstance(v, dict) else v for k, v in values.items()})
        self.read = set[str]()

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return super().__getitem__(key)

    def __iter__(self) -> Iterator[str]:
        # With an iterator of its own, `f(**self)` looks every key up by `__getitem__`: what is
        # handed on to a pydantic model, which checks its keys, counts as looked up.
        return super().__iter__()

    def get(self, key: str, default: Any = None) -> Any:
        """As of a dictionary."""
        self.read.add(key)
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        self.read.add(str(key))
        return super().__contains__(key)

    def __deepcopy__(self, memo: object) -> Traced:
        return self

    def unread(self, prefix: str = "") -> Iterator[tuple[str, set[str]]]:
        """Yield keys that were not looked up, each with those that were looked up beside it.

        A section of which no key was looked up is one that is off.
        """
        for key, value in self.items():
            if key not in self.read:
                yield f"{prefix}{key}", self.read
            elif isinstance(value, Traced) and value.read:
                yield from value.unread(f"{prefix}{key}.")


def problem_of(config: dict[str, Any]) -> str | None:
    """Return what is wrong with a configuration, as the rest of a sentence on its file."""
    from deepspeed.runtime.config import DeepSpeedConfig
    from pydantic import ValidationError

    traced = Traced(config)
    try:
        DeepSpeedConfig(traced)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        if first["type"] != "extra_forbidden":
            return f"has {key} {json.dumps(first['input'], default=str)}: {first['msg']}"
        return f"has {key}, which is no key of {error.title}{_hint(key, _fields(error.title))}"
    except Exception as error:  # noqa: BLE001 - of many types, and all are about the file
        return f"is refused by DeepSpeed: {type(error).__name__}: {str(error).splitlines()[0]}"
    for key, known in traced.unread():
        return f"has {key}, which DeepSpeed does not know{_hint(key, known)}"
    return None


def _hint(key: str, known: set[str]) -> str:
    close = difflib.get_close_matches(key.rpartition(".")[2], sorted(known), n=1)
    return f"; did you mean {close[0]}?" if close else "; leave it out"


def _fields(model: str) -> set[str]:
    """Return the fields of DeepSpeed's models of this name."""
    from deepspeed.runtime.config_utils import DeepSpeedConfigModel

    pending: list[Any] = [DeepSpeedConfigModel]
    fields = set[str]()
    while pending:
        kind = pending.pop()
        pending += kind.__subclasses__()
        if kind.__name__ == model:
            fields |= {*kind.model_fields}
    return fields


if __name__ == "__main__":
    print(json.dumps(problem_of(json.load(sys.stdin))))
