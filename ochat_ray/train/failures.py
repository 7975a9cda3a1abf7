"""Errors of workers: classification into retryable and final ones, and their messages.

Ray Train restarts the workers after any error, which helps after lost processes, hosts and
connections. An error that would recur is written to the run's work folder instead, and ends the
run.
"""

from __future__ import annotations

import contextlib
import json
import re
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from ochat_ray.command_line import user_message
from ochat_ray.errors import JobFailedError, UserError
from ochat_ray.run_dir import RunDir

FAILURE = "failure.json"
"""File of a run's work folder: the reason why workers must not be restarted."""

_SEEN = "errors-{rank}.json"
"""File of a run's work folder: the last error of a worker."""

_FROM_CODE = (
    TypeError,
    ValueError,
    AssertionError,
    LookupError,
    AttributeError,
    NameError,
    NotImplementedError,
    ImportError,
    ArithmeticError,
    RecursionError,
)
"""Types of errors that the same code raises again on the same input."""

_FROM_SHAPES = re.compile(
    r"shape|size mismatch|must match the size|dimension|expected .*(dtype|type|tensor|device)"
    r"|same dtype|Boolean value of Tensor|not implemented for|state_dict",
    re.IGNORECASE,
)
"""Messages of PyTorch's RuntimeErrors of the same kind."""

_OF_CONNECTIONS = re.compile(
    r"gloo|nccl|ncclsystemerror|connection (closed|reset|refused)|broken pipe|timed? ?out"
    r"|socket|tcpstore|unreachable|heartbeat|rendezvous|worker .*died|process group",
    re.IGNORECASE,
)
_OUT_OF_MEMORY = re.compile(r"out of memory", re.IGNORECASE)


@dataclass
class Place:
    """Current activity of a worker, as text for messages, and its step (0 before the first)."""

    text: str = "while starting"
    step: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """Reason for the end of a run: a line for the user and, for a bug, the worker's traceback."""

    message: str
    is_bug: bool = False
    traceback: str = ""

    def error(self) -> Exception:
        """Return the exception to raise in the job."""
        if self.is_bug:
            return JobFailedError(self.message, detail=self.traceback)
        return UserError(self.message)


def final_failure(error: BaseException, place: Place, work: RunDir, rank: int) -> Failure | None:
    """Return the failure if an error ends the run, or None if it is to be retried.

    An error of unknown kind is recorded in the work folder: it ends the run if the next attempt
    fails with the same error at the same step.
    """
    if message := user_message(error):
        return Failure(message=message)
    if is_of_connection(error):
        return None
    if is_from_code(error) or _recurred(error, place, work, rank):
        return describe(error, place)
    return None


def describe(error: BaseException, place: Place) -> Failure:
    """Return the failure that describes an error of a worker."""
    text = f"{type(error).__name__} {place.text}: {_first_line(error)}"
    if _OUT_OF_MEMORY.search(str(error)):
        return Failure(
            message=f"{text}; use a smaller --max-tokens, more workers, or offload "
            "(--offload-optimizer, --offload-parameters)"
        )
    return Failure(
        message=f"{text}; this is a bug or an unsupported model: report it with the traceback "
        "above, or try another --attention or --model",
        is_bug=True,
        traceback="".join(traceback.format_exception(error)),
    )


def is_from_code(error: BaseException) -> bool:
    """Return whether the same code would raise the error again on the same input."""
    if isinstance(error, _FROM_CODE):
        return True
    return isinstance(error, RuntimeError) and bool(_FROM_SHAPES.search(_first_line(error)))


def is_of_connection(error: BaseException) -> bool:
    """Return whether a lost worker, host or connection explains the error."""
    from torch import distributed

    return any(
        isinstance(cause, ConnectionError | TimeoutError | distributed.DistError)
        or (isinstance(cause, RuntimeError | OSError) and _OF_CONNECTIONS.search(str(cause)))
        for cause in _causes(error)
    )


def write(work: RunDir, failure: Failure) -> None:
    """Write a failure to the run's work folder; on a full disk the file may stay empty."""
    data = json.dumps(asdict(failure)).encode()
    with contextlib.suppress(OSError), work.fs.open_output_stream(work.path(FAILURE)) as stream:
        stream.write(data)


def read(work: RunDir) -> Failure | None:
    """Return the failure that a worker wrote, or None."""
    if not work.exists(FAILURE):
        return None
    with work.fs.open_input_stream(work.path(FAILURE), compression=None) as stream:
        data = stream.read()
    try:
        return Failure(**json.loads(data))
    except (ValueError, TypeError):  # truncated
        return Failure(message="no space left on the device; free some, or choose another --output")


def _recurred(error: BaseException, place: Place, work: RunDir, rank: int) -> bool:
    name = _SEEN.format(rank=rank)
    message = re.sub(r"0x[0-9a-f]+|\d+", "N", str(error))
    now = {"type": type(error).__name__, "message": message, "step": place.step}
    with contextlib.suppress(UserError, OSError):
        if work.read_json(name) == now:
            return True
        work.write_json(name, now)
    return False


def _first_line(error: BaseException) -> str:
    """Return the message's first line, and where it was raised if it has none."""
    lines = str(error).strip().splitlines()
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename.rsplit('/', 1)[-1]}:{frames[-1].lineno})" if frames else ""
    return f"{lines[0][:300] if lines else 'without a message'}{place}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__
