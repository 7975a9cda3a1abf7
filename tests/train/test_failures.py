"""Errors of workers: final at once, final when they recur, or retried."""

import errno

import pytest
import torch
from torch import distributed

from ochat_ray.errors import JobFailedError, UserError
from ochat_ray.run_dir import RunDir
from ochat_ray.train import failures
from ochat_ray.train.failures import Place, final_failure


@pytest.fixture
def work(tmp_path):
    return RunDir.open(str(tmp_path))


def raised(call):
    """The error that a call raises, with its traceback."""
    try:
        call()
    except Exception as error:  # noqa: BLE001 - of every type
        return error
    raise AssertionError("nothing was raised")


def of_code():
    return [
        raised(lambda: len(3)),
        raised(lambda: {}["key"]),
        raised(lambda: int("x")),
        raised(lambda: torch.zeros(2) + torch.zeros(3)),
        raised(lambda: torch.zeros(2, 3) @ torch.zeros(2, 3)),
        raised(lambda: torch.nn.Linear(2, 2).load_state_dict({})),
        raised(lambda: torch.nn.functional.linear(torch.ones(1).bfloat16(), torch.ones(1, 1))),
        AssertionError(),
    ]


@pytest.mark.parametrize("number", range(8))
def test_an_error_of_code_ends_the_run_at_once(work, number):
    error = of_code()[number]
    failure = final_failure(error, Place("in step 3", 3), work, 0)
    assert failure.is_bug
    assert failure.message.startswith(f"{type(error).__name__} in step 3: ")
    assert "this is a bug or an unsupported model: " in failure.message
    assert "\n" not in failure.message
    assert isinstance(failure.error(), JobFailedError)


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError("peer"),
        distributed.DistBackendError("NCCL error: unhandled system error"),
        RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.1]"),
        RuntimeError("[../gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1800000ms"),
        RuntimeError("Rank 1 successfully reached monitoredBarrier, but a socket was closed"),
        TimeoutError(),
    ],
)
def test_a_lost_worker_or_connection_is_always_retried(work, error):
    for _ in range(3):
        assert final_failure(error, Place("in step 3", 3), work, 0) is None


def test_an_unknown_error_ends_the_run_when_it_recurs_at_the_same_step(work):
    def error(address):
        return RuntimeError(f"CUDA error: an illegal instruction at 0x{address}")

    third, fourth = Place("in step 3", 3), Place("in step 4", 4)
    assert final_failure(error("7f01"), third, work, 0) is None
    assert final_failure(error("7f01"), third, work, 1) is None  # another worker
    assert final_failure(error("7f02"), fourth, work, 0) is None  # it got further
    assert final_failure(OSError("other"), fourth, work, 0) is None
    assert final_failure(error("7f03"), fourth, work, 0) is None
    failure = final_failure(error("7f04"), fourth, work, 0)
    assert failure.message.startswith("RuntimeError in step 4: CUDA error")


def test_out_of_memory_names_a_remedy(work):
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    assert final_failure(error, Place("in step 1", 1), work, 0) is None
    failure = final_failure(error, Place("in step 1", 1), work, 0)
    assert not failure.is_bug
    assert "--max-tokens" in failure.message


def test_a_users_error_ends_the_run_with_its_line(work):
    full = final_failure(OSError(errno.ENOSPC, "No space left"), Place(), work, 0)
    assert full.message == "no space left on the device; free some, or choose another --output"
    failure = final_failure(UserError("give another"), Place(), work, 0)
    assert str(failure.error()) == "give another"
    assert isinstance(failure.error(), UserError)


def test_a_failure_is_read_as_written(work):
    assert failures.read(work) is None
    failure = final_failure(raised(lambda: len(3)), Place("in step 3", 3), work, 0)
    failures.write(work, failure)
    assert failures.read(work) == failure
    error = failure.error()
    assert "Traceback" in error.detail
    assert "TypeError: object of type 'int' has no len()" in error.detail


def test_a_failure_truncated_by_a_full_disk_is_reported_as_a_full_disk(work, tmp_path):
    (tmp_path / failures.FAILURE).write_text("")
    assert "no space left" in failures.read(work).message


def test_an_error_without_a_message_names_its_source_line(work):
    def empty():
        raise AssertionError

    failure = final_failure(raised(empty), Place("in the export", 9), work, 0)
    assert "AssertionError in the export: without a message (test_failures.py:" in failure.message
