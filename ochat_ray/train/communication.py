"""How fast the workers exchange tensors, and how much of a step that takes."""

from __future__ import annotations

import time

import torch
from torch import distributed

_SIZES = (2**16, 2**20, 2**24)
"""Bytes: the next is tried where the one before took no time to speak of."""

_LONG_S = 0.05


def bus_bandwidth(device: torch.device) -> float:
    """Bytes a second through each worker's link in an all-reduce; all workers must call it.

    2 (n - 1) / n of the tensor's size over the time of the slowest, as in nccl-tests'
    PERFORMANCE.md. Infinite for one worker.
    """
    workers = distributed.get_world_size()
    if workers == 1:
        return float("inf")
    bandwidth = float("inf")
    for size in _SIZES:
        tensor = torch.zeros(size // 4, device=device)
        distributed.all_reduce(tensor[:1])  # makes the connections
        _wait(device)
        started = time.monotonic()
        distributed.all_reduce(tensor)
        _wait(device)
        seconds = torch.tensor(time.monotonic() - started, device=device)
        distributed.all_reduce(seconds, distributed.ReduceOp.MAX)
        bandwidth = 2 * (workers - 1) / workers * size / max(seconds.item(), 1e-9)
        if seconds.item() > _LONG_S:  # on all workers, or on none
            break
    return bandwidth


def communication_seconds(
    *, parameters: int, width: int, packs: int, zero_stage: int, workers: int, bandwidth: float
) -> float:
    """What the collectives of a step of so many packs a worker take at that bandwidth.

    ZeRO-3 gathers the parameters for each forward and each backward pass, `width` bytes each, and
    reduces the gradients, in float32 as this project has it; the other stages gather them once a
    step (Rajbhandari et al. 2020, "ZeRO: Memory Optimizations", section 7).
    """
    gathers = 2 * packs if zero_stage == 3 else 1
    volume = parameters * (width * gathers + 4 * packs)
    return (workers - 1) / workers * volume / bandwidth


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
