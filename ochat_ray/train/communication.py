"""All-reduce bandwidth between workers, and estimated communication time per step."""

from __future__ import annotations

import time

import torch
from torch import distributed

from ochat_ray.train.flops import ModelShape

_SIZES = (2**16, 2**20, 2**24)
"""Message sizes in bytes; the next one is used if the previous one took less than `_LONG_S`."""

_LONG_S = 0.05
"""Duration of an all-reduce that is long enough for a measurement."""


def bus_bandwidth(device: torch.device) -> float:
    """Measure the bus bandwidth of an all-reduce in bytes per second; all workers must call it.

    It is 2 (n - 1) / n of the tensor's size over the time of the slowest worker, as defined in
    nccl-tests' PERFORMANCE.md. Infinite for one worker.
    """
    workers = distributed.get_world_size()
    if workers == 1:
        return float("inf")
    bandwidth = float("inf")
    for size in _SIZES:
        tensor = torch.zeros(size // 4, device=device)
        distributed.all_reduce(tensor[:1])  # opens the connections
        _wait(device)
        started = time.monotonic()
        distributed.all_reduce(tensor)
        _wait(device)
        seconds = torch.tensor(time.monotonic() - started, device=device)
        distributed.all_reduce(seconds, distributed.ReduceOp.MAX)
        bandwidth = 2 * (workers - 1) / workers * size / max(seconds.item(), 1e-9)
        if seconds.item() > _LONG_S:  # the same on all workers
            break
    return bandwidth


def communication_seconds(
    shape: ModelShape, *, width: int, packs: int, zero_stage: int, workers: int, bandwidth: float
) -> float:
    """Estimate the time of a step's collective operations in seconds.

    ZeRO-3 gathers all parameters for each forward and each backward pass and reduces the
    gradients, which are float32 in this project; the others gather trained ones once per step
    (Rajbhandari et al. 2020, "ZeRO: Memory Optimizations", section 7).

    Args:
        shape: sizes of the model.
        width: bytes per parameter that is not quantized.
        packs: forward passes per worker.
        zero_stage: ZeRO stage.
        workers: number of workers.
        bandwidth: bus bandwidth in bytes per second.
    """
    trained = shape.trained_parameters
    gathered = 2 * packs * shape.weight_bytes(width) if zero_stage == 3 else width * trained
    volume = gathered + 4 * packs * trained
    return (workers - 1) / workers * volume / bandwidth


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
