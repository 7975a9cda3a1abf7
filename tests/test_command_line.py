"""End of the jobs: messages for the user, and the exit status."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ochat_ray.command_line import run, user_message
from ochat_ray.errors import JobFailedError, UserError
from ochat_ray.run_dir import RunDir

ROOT = Path(__file__).parent.parent


def job(*arguments):
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, cwd=ROOT
    )


def test_help_whose_reader_closes_the_pipe_ends_without_a_traceback():
    command = f"{sys.executable} jobs/prepare.py --help | head -n 1"
    shown = subprocess.run(
        command, shell=True, capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert shown.stdout.startswith("usage: ")
    assert shown.stderr == ""


PRINT = """
import sys
from ochat_ray.command_line import run
from ochat_ray.status.config import StatusConfig
lines = "\\n".join(["\\u4f60"] * 100_000)
sys.exit(run(lambda _: StatusConfig(), lambda _: {}, lambda *_: lines, "x", []))
"""


def printing(end, **variables):
    """Run a command that prints 100,000 Chinese characters."""
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; '{sys.executable}' -c \"$PROGRAM\" {end}"],
        env=os.environ | {"PROGRAM": PRINT, **variables},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_result_whose_reader_closes_the_pipe_ends_without_a_traceback():
    done = printing("| head -n 1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "\u4f60\n", "")


def test_a_result_that_cannot_be_encoded_is_escaped():
    done = printing("| tail -n 1", PYTHONIOENCODING="latin-1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "\\u4f60\n", "")


def test_a_result_for_a_full_disk_is_one_line_and_status_2():
    done = printing("> /dev/full")
    assert done.returncode == 2
    assert done.stderr == "x: cannot print the result ([Errno 28] No space left on device)\n"


def test_a_user_error_under_others_is_found():
    inner = UserError("do this")
    outer = RuntimeError("wrapped")
    outer.__cause__ = inner
    assert user_message(outer) == "do this"


@pytest.mark.parametrize(
    ("aws_error", "line"),
    [
        ("UNKNOWN (HTTP status 400) during HeadObject operation: No response body.", "credentials"),
        (
            "UNKNOWN (HTTP status 400) during PutObject operation: Unable to parse ExceptionName: "
            "ExpiredToken Message: The provided token has expired.",
            "credentials",
        ),
        ("ACCESS_DENIED during HeadObject operation: No response body.", "credentials"),
        ("INVALID_ACCESS_KEY_ID during ListObjectsV2 operation: unknown key", "credentials"),
        ("SIGNATURE_DOES_NOT_MATCH during PutObject operation: other", "credentials"),
        ("UNKNOWN (HTTP status 503) during HeadObject operation: No response body.", "later"),
        ("SLOW_DOWN during PutObject operation: Please reduce your request rate.", "later"),
        ("NETWORK_CONNECTION during GetObject operation: curlCode: 56, reset by peer", "later"),
        ("NO_SUCH_BUCKET during PutObject operation: The bucket does not exist", "check the URI"),
    ],
)
def test_an_error_of_s3_is_one_line(aws_error, line):
    error = OSError(f"When reading 'x' in bucket 'b': AWS Error {aws_error}\nand more")
    message = user_message(error)
    assert line in message
    assert aws_error in message
    assert "\n" not in message


def test_a_user_error_that_a_worker_raised_is_found():
    class WorkerGroupError(RuntimeError):
        worker_failures = {0: UserError("in a worker")}  # noqa: RUF012

    assert user_message(WorkerGroupError()) == "in a worker"


def test_a_user_error_in_nested_exception_groups_is_found():
    group = ExceptionGroup("outer", [ExceptionGroup("inner", [UserError("of one task")])])
    assert user_message(group) == "of one task"


@pytest.mark.parametrize("others", [[], [UserError("of one task")]])
def test_an_exception_group_with_a_bug_is_not_a_user_error(others):
    assert user_message(ExceptionGroup("tasks", [*others, ValueError("a bug")])) is None


def test_no_space_left_is_a_user_error():
    assert "no space left" in user_message(OSError(errno.ENOSPC, "No space left on device", "/x"))


@pytest.mark.parametrize("size", [10, 10_000])
def test_no_space_left_for_a_torch_file_is_a_user_error(size):
    import torch

    with pytest.raises(RuntimeError) as error:
        torch.save(torch.zeros(size), "/dev/full")
    assert "no space left" in user_message(error.value)


def test_an_exhausted_quota_is_reported_as_a_full_disk():
    assert "no space left" in (user_message(OSError(errno.EDQUOT, "Disk quota exceeded")) or "")


def test_a_file_in_place_of_a_folder_is_one_line():
    message = user_message(NotADirectoryError(errno.ENOTDIR, "Not a directory", "/data/tokens"))
    assert message is not None
    assert "a file lies where a folder belongs" in message
    assert "/data/tokens" in message


def test_a_missing_bucket_is_one_line(s3):
    with pytest.raises(OSError, match="nobucket") as missing:
        RunDir.open("s3://nobucket/out").fs.create_dir("nobucket/out")
    assert user_message(missing.value).startswith("Bucket 'nobucket' not found; create it")


def test_other_errors_are_not_user_errors():
    assert user_message(ValueError("a bug")) is None


@pytest.mark.parametrize("name", ["prepare", "train"])
def test_help_answers_and_shows_the_recipes_defaults(name):
    done = job(f"jobs/{name}.py", "--recipe", "openchat", "--help")
    assert done.returncode == 0
    assert "runs/openchat/" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["jobs/prepare.py", "--recipe", "x"], "unknown recipe 'x'"),
        (["jobs/prepare.py", "--recipe", "openchat"], "--input is needed"),
        (
            ["jobs/prepare.py", "--eval-ratio", "2", "--input", ".", "--tokenizer", "."],
            "--eval-ratio must be in",
        ),
        (["jobs/train.py", "--recipe", "openchat"], "--model is needed"),
        (["jobs/train.py", "--zero-stage", "4", "--model", "x"], "--zero-stage must be"),
        (["jobs/train.py", "--model", "x", "--data", "/nowhere"], "no complete data at /nowhere"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, line):
    done = job(*arguments)
    assert done.returncode == 2
    assert line in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_an_unknown_flag_is_status_2():
    assert job("jobs/prepare.py", "--no-such-flag", "1").returncode == 2


@pytest.mark.parametrize(
    ("code", "line"),
    [
        (errno.EIO, "the disk or network file system failed"),
        (errno.ESTALE, "the disk or network file system failed"),
        (errno.EDQUOT, "no space left within the disk quota"),
        (errno.ENOSPC, "no space left on the device"),
        (errno.EROFS, "cannot write"),
        (errno.EFBIG, "a file is too large"),
        (errno.ENAMETOOLONG, "a path cannot be used"),
        (errno.EACCES, "access is denied"),
    ],
)
def test_an_error_of_the_system_is_one_line_that_names_the_file(code, line):
    message = user_message(OSError(code, os.strerror(code), "/data/x"))
    assert message.startswith(line)
    assert "/data/x" in message or "no space" in line
    assert "\n" not in message


@pytest.mark.parametrize(
    ("error", "status", "printed"),
    [
        (UserError("give another"), 2, "job: give another\n"),
        (
            JobFailedError("TypeError in step 3: x", "Traceback\n"),
            1,
            "Traceback\njob: TypeError in step 3: x\n",
        ),
        (KeyboardInterrupt(), 130, "interrupted; run it again: incomplete files are not used\n"),
    ],
)
def test_the_last_line_is_the_message(monkeypatch, capsys, error, status, printed):
    def work(config):
        raise error

    monkeypatch.setattr("ochat_ray.command_line.parse", lambda *_: None)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    assert run(None, work, None, "job", []) == status
    assert capsys.readouterr().err == printed
