"""Default thread count and KV-cache size of a replica."""

from __future__ import annotations

import os

import psutil

from ochat_ray.errors import UserError

_CPU_MEMORY_SHARE = 0.1


def cpu_threads(num_cpus: float) -> int:
    """Return the compute threads of a replica with `num_cpus` CPUs, at most the machine's."""
    return max(1, min(int(num_cpus), os.cpu_count() or 1))


def default_cache_bytes() -> int:
    """Return the default size of the KV cache on a CPU, after loading the model, in bytes."""
    return int(_CPU_MEMORY_SHARE * psutil.virtual_memory().available)


def check_context_fits(context_length: int, needed_bytes: int, cache_bytes: float) -> None:
    """Check that one full context, in tokens, fits the cache; otherwise a request could never run.

    Raises:
        UserError: It does not fit; the line has the numbers.
    """
    if cache_bytes < needed_bytes:
        raise UserError(
            f"one context of {context_length} tokens needs {needed_bytes / 2**30:.2f} GiB of "
            f"key-value cache, and there are {cache_bytes / 2**30:.2f}; lower context_length or "
            "raise kv_cache_gib"
        )
