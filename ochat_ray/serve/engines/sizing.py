"""How much of the machine a replica takes, where nothing was asked for."""

from __future__ import annotations

import os

import psutil

from ochat_ray.errors import UserError

_CPU_MEMORY_SHARE = 0.1


def cpu_threads(num_cpus: float) -> int:
    """Threads to compute on in a replica of that many CPUs: at least one, at most the machine's."""
    return max(1, min(int(num_cpus), os.cpu_count() or 1))


def default_cache_bytes() -> int:
    """What the key-value cache may take of a CPU's memory, once the model is loaded."""
    return int(_CPU_MEMORY_SHARE * psutil.virtual_memory().available)


def check_context_fits(context_length: int, needed_bytes: int, cache_bytes: float) -> None:
    """Hold one full context, in tokens, against the cache: without it a request could never run.

    Raises:
        UserError: it does not fit; the line has the numbers.
    """
    if cache_bytes < needed_bytes:
        raise UserError(
            f"one context of {context_length} tokens needs {needed_bytes / 2**30:.2f} GiB of "
            f"key-value cache, and there are {cache_bytes / 2**30:.2f}; lower context_length or "
            "raise kv_cache_gib"
        )
