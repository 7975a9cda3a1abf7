"""Check of a DeepSpeed configuration with DeepSpeed's own reader, in a separate process.

`python -m ochat_ray.train.deepspeed_check` reads a configuration from standard input. DeepSpeed
ignores unknown keys outside of its pydantic models, so this records the keys that it looks up and
reports the others. It runs in a separate process because importing DeepSpeed takes seconds, prints
and selects an accelerator.
"""

from __future__ import annotations

import difflib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from ochat_ray.errors import UserError, first_line


def check_with_deepspeed(path: str, config: dict[str, Any]) -> None:
    """Raise a UserError for the first key or value that DeepSpeed does not know.

    Args:
        path: the user's file, for the message.
        config: the configuration for one worker, with the user's file merged in.
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
        # With this iterator, `f(**self)` looks up every key by `__getitem__`: keys that are passed
        # to a pydantic model, which checks them, count as looked up.
        return super().__iter__()

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value like `dict.get`, and record the key."""
        self.read.add(key)
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        self.read.add(str(key))
        return super().__contains__(key)

    def __deepcopy__(self, memo: object) -> Traced:
        return self

    def unread(self, prefix: str = "") -> Iterator[tuple[str, set[str]]]:
        """Yield each key that was not looked up, with the keys of its section that were.

        Sections without any looked-up key are disabled and skipped.
        """
        for key, value in self.items():
            if key not in self.read:
                yield f"{prefix}{key}", self.read
            elif isinstance(value, Traced) and value.read:
                yield from value.unread(f"{prefix}{key}.")


def problem_of(config: dict[str, Any]) -> str | None:
    """Return the first problem of a configuration, as a predicate of its file's name."""
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
    except Exception as error:  # noqa: BLE001 - of many types, all caused by the file
        return f"is rejected by DeepSpeed: {type(error).__name__}: {first_line(error)}"
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
