"""Call functions that may never return, such as a read from a network disk without a server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

Value = TypeVar("Value")


def call_all(
    functions: Sequence[Callable[[], Value]], timeout_s: float
) -> list[Value | BaseException | None]:
    """Call functions concurrently, and return their values.

    Returns:
        For each function its value, the exception that it raised, or None if it has not returned
        within `timeout_s` seconds. Its thread then stays, and ends with the process.
    """
    found: list[Value | BaseException | None] = [None] * len(functions)

    def call(position: int) -> None:
        try:
            found[position] = functions[position]()
        except BaseException as error:  # noqa: BLE001  raised by the caller, in its own thread
            found[position] = error

    threads = [
        threading.Thread(target=call, args=(position,), daemon=True)
        for position in range(len(functions))
    ]
    deadline = time.monotonic() + timeout_s
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return found
