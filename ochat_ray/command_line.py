"""Command line of the jobs: options with a recipe's defaults, one-line errors, results as JSON."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from ochat_ray.errors import JobFailedError, UserError, first_line, is_store_failure
from ochat_ray.recipes import DEMO

Config = TypeVar("Config")


def parse(for_recipe: Callable[[str], Config], arguments: Sequence[str], program: str) -> Config:
    """Return the configuration of the options, with the defaults of the recipe that they name.

    Exits with status 2 and a message for an unknown option, as tyro does.
    """
    import tyro  # slow to import, and not needed to report errors

    default = for_recipe(option_value(arguments, "--recipe") or DEMO)
    return tyro.cli(
        type(default),
        prog=program,
        args=arguments,
        default=default,
        config=(tyro.conf.AvoidSubcommands,),
    )


def flag(name: str) -> str:
    """Return the flag of the option with a field's name."""
    return f"--{name.replace('_', '-')}"


def option_value(arguments: Sequence[str], option: str) -> str | None:
    """Return the value of an option on a command line; None if it is not given."""
    for position, argument in enumerate(arguments):
        if argument == option and position + 1 < len(arguments):
            return arguments[position + 1]
        if argument.startswith(f"{option}="):
            return argument.removeprefix(f"{option}=")
    return None


def run(
    for_recipe: Callable[[str], Config],
    work: Callable[[Config], dict[str, Any]],
    describe: Callable[[Config, dict[str, Any]], str],
    program: str,
    arguments: Sequence[str],
    *,
    status_of: Callable[[Config, dict[str, Any]], int] = lambda *_: 0,
) -> int:
    """Parse the options, do the work and print its result; return the exit status.

    Args:
        for_recipe: returns the default configuration of a recipe.
        work: returns the result, which `--json` prints.
        describe: returns the result as text.
        program: name of the program, for messages.
        arguments: what follows the program's name.
        status_of: returns the exit status of a result.

    Returns:
        That of the result, which is 0 by default; 2 for a user's error, 130 for Ctrl-C, 1 for a
        job that failed. Bugs are raised.
    """
    try:
        try:
            config = parse(for_recipe, arguments, program)
        except BrokenPipeError:  # of `... --help | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for buffered output
            return 1
        result = work(config)
    except KeyboardInterrupt:
        # A second Ctrl-C would print a traceback of the interpreter's shutdown.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("interrupted; run it again: incomplete files are not used", file=sys.stderr)
        return 130
    except JobFailedError as error:
        sys.stdout.flush()
        print(f"{error.detail}{program}: {error}", file=sys.stderr)
        return 1
    except Exception as error:
        message = user_message(error)
        if message is None:
            raise
        print(f"{program}: {message}", file=sys.stderr)
        return 2
    if isinstance(sys.stdout, io.TextIOWrapper):  # names may have characters that it cannot encode
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        print(describe(config, result), flush=True)
        if getattr(config, "json", False):
            print(json.dumps(result), flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for buffered output
        if not isinstance(error, BrokenPipeError):  # of `... | head`
            print(f"{program}: cannot print the result ({error})", file=sys.stderr)
            return 2
    return status_of(config, result)


def user_message(error: BaseException) -> str | None:
    """Return one line for the user if they can fix the error, or one that it wraps; else None."""
    for cause in _chain(error):
        if isinstance(cause, UserError) and not hasattr(cause, "cause"):
            return str(cause)
        full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or any(text in str(cause) for text in _FULL_DISK):
            quota = isinstance(cause, OSError) and cause.errno == errno.EDQUOT
            where = "within the disk quota" if quota else "on the device"
            return f"no space left {where}; free some, or choose another --output"
        first = first_line(cause)
        if isinstance(cause, OSError) and cause.errno == errno.EROFS:
            return f"cannot write ({first}); choose another --output"
        if isinstance(cause, OSError) and cause.errno in (errno.EACCES, errno.EPERM):
            return f"access is denied ({first}); change its permissions, or give another path"
        if (isinstance(cause, OSError) and cause.errno == errno.EFBIG) or _TOO_LARGE in first:
            return (
                f"a file is too large for the file system or for `ulimit -f` ({first}); raise the "
                "limit, or choose another --output"
            )
        if isinstance(cause, OSError) and cause.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            return f"a path cannot be used ({first}); give another one"
        if isinstance(cause, OSError) and cause.errno in _FAILED_DISK:
            return (
                f"the disk or network file system failed ({first}); check it, and run again: "
                "finished work is kept"
            )
        if isinstance(cause, OSError) and cause.errno in (errno.ENOTDIR, errno.EISDIR):
            return f"a file lies where a folder belongs, or a folder in a file's place ({first})"
        if isinstance(cause, OSError) and (bucket := _NO_BUCKET.match(first)):
            return f"{bucket[0]}; create it, or choose another --output"
        if is_store_failure(cause):
            return _s3_message(first)
    return None


# Libraries written in Rust raise their own types with the system's text; torch.save's writer in
# C++ reports only that too few bytes were written, or nothing.
_FULL_DISK = (
    "No space left on device",
    "Disk quota exceeded",
    "inline_container.cc",
    "iostream error",
)


_TOO_LARGE = "File too large"

_FAILED_DISK = {
    getattr(errno, name, errno.EIO) for name in ("EIO", "ESTALE", "EREMOTEIO", "EUCLEAN")
}
"""Errors of a damaged disk, or of a network file system without a server; not all exist on macOS.
"""

_NO_BUCKET = re.compile("Bucket '[^']+' not found")  # pyarrow has no exception type for it

# An expired token is a 400, and the response to a HEAD request has no body with the reason.
_CREDENTIALS = re.compile(
    r"ACCESS_DENIED|ACCESS_KEY|SIGNATURE|TOKEN|CREDENTIALS|UNRECOGNIZED_CLIENT|REQUEST_EXPIRED"
    r"|(?:Expired|Invalid)Token|TokenRefreshRequired|TooSkewed|HTTP status 40[13]"
    r"|HTTP status 400\).*No response body"
)
_TRANSIENT = re.compile(r"NETWORK_CONNECTION|SLOW_DOWN|THROTTLING|TIMEOUT|INTERNAL|HTTP status 5")


def _s3_message(error: str) -> str:
    if _CREDENTIALS.search(error):
        return f"S3 refuses the credentials ({error}); renew them, and run again with --resume"
    if _TRANSIENT.search(error):
        return f"S3 still fails after retries ({error}); run again later with --resume"
    return f"S3 refuses a request ({error}); check the URI"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    pending = [error]
    while pending:
        current = pending.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        # Ray keeps a task's exception in `cause`, and those of several workers in a dict.
        inner = [getattr(current, "cause", None), current.__cause__, current.__context__]
        inner += list(getattr(current, "worker_failures", {}).values())
        # A group that also holds an error of another kind is a bug.
        if isinstance(current, BaseExceptionGroup) and all(map(user_message, current.exceptions)):
            inner += current.exceptions
        pending += [e for e in reversed(inner) if isinstance(e, BaseException)]
