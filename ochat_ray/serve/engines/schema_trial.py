"""Compile a costly JSON Schema, or a grammar, first in a separate process with limits.

llguidance 1.7.6 compiles `{"multipleOf": 1000003}` for 20 seconds, and uses gigabytes for a large
`minItems`; it has no limit for either, and cannot be interrupted. A schema that kills this process
does not kill the model replica.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

from ochat_ray.serve.engines.base import RequestRefusedError

if TYPE_CHECKING:
    from ochat_ray.serve.engines.grammar import Source

CPU_S = 2
MEMORY_BYTES = 1 << 30
"""CPU time in seconds, and additional memory, that one schema or grammar may use."""

WALL_S = 30.0
"""Timeout in seconds after which the process is killed."""

PARAM = "response_format"
"""Field that errors name; the ingress knows which one was given."""


class SchemaTrial:
    """Process that compiles schemas for the tokenizer of a model; started on first use."""

    def __init__(self, directory: str, model_type: str | None = None) -> None:
        self._model = [directory, *([model_type] if model_type else [])]
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def cost(self, source: Source) -> int:
        """Return the bytes of memory that the compiled source uses.

        Raises:
            RequestRefusedError: The source cannot be compiled, or not within the limits.
        """
        with self._lock:
            answer = self._ask(source)
        if answer is None:
            raise RequestRefusedError(
                f"{source.kind} takes more than {CPU_S} s or {MEMORY_BYTES >> 20} MiB to compile; "
                "use smaller counts, divisors or patterns",
                PARAM,
            )
        if "error" in answer:
            raise RequestRefusedError(str(answer["error"]), PARAM)
        return int(str(answer["bytes"]))

    def close(self) -> None:
        """Stop the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def _ask(self, source: Source) -> dict[str, object] | None:
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        timer = threading.Timer(WALL_S, process.kill)
        timer.start()
        try:
            process.stdin.write(json.dumps([source.kind, source.text]) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
        if not line:
            self.close()
            return None
        answer: dict[str, object] = json.loads(line)
        return answer

    def _start(self) -> subprocess.Popen[str]:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ochat_ray.serve.engines.schema_trial", *self._model],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        return self._process


def _main(directory: str, model_type: str | None = None) -> None:
    from ochat_ray.serve.engines.grammar import Source, Tokens, compile_source, open_tokens

    tokens: Tokens = open_tokens(directory, model_type)
    for line in sys.stdin:
        before = _limit()
        try:
            compile_source(tokens, Source(*json.loads(line)))
            answer: dict[str, object] = {"bytes": max(0, _resident_bytes() - before)}
        except RequestRefusedError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)


def _limit() -> int:
    """Set the limits of this process for one schema; return its resident bytes."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    spent = int(used.ru_utime + used.ru_stime)
    resource.setrlimit(resource.RLIMIT_CPU, (spent + 1 + CPU_S, resource.RLIM_INFINITY))
    virtual = int(_statm()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (virtual + MEMORY_BYTES, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return _resident_bytes()


def _resident_bytes() -> int:
    return int(_statm()[1]) * resource.getpagesize()


def _statm() -> list[str]:
    with open("/proc/self/statm") as stream:
        return stream.read().split()


if __name__ == "__main__":
    _main(*sys.argv[1:])
