"""Check of a device before a long run: memory patterns, exact matrix products, copy bandwidth.

A GPU with a fault often computes wrong numbers instead of failing (Meta, "The Llama 3 Herd of
Models", section 3.3.4: silent data corruption). The products are of small integers, so that every
data type that is used here holds every sum exactly, in any order of summation.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from ochat_ray.errors import UserError

SECONDS = 20.0
"""Time for the check, of which a third is for memory."""

CHUNK_BYTES = 2**28
PATTERNS = (0x5555555555555555, -0x5555555555555556)
"""Alternating bits, and their inverse, so that each bit is written as 0 and as 1."""

INNER = 256
"""Terms per sum of products of -1, 0 and 1: all integers up to 256 are exact in bfloat16."""

Matmul = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceReport:
    """Extent of a passed check; `copy_bandwidth` is from host to device, in bytes per second."""

    memory_bytes: int
    products: int
    copy_bandwidth: float


def device_name(device: torch.device) -> str:
    """Return the name of the hardware."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def check_device(
    device: torch.device,
    *,
    seconds: float = SECONDS,
    memory_bytes: int | None = None,
    size: int = 4096,
    dtypes: tuple[torch.dtype, ...] = (torch.bfloat16, torch.float32),
    matmul: Matmul = torch.matmul,
) -> DeviceReport:
    """Check the memory and the matrix products of a device.

    Args:
        device: device to check; no other process should use it.
        seconds: time for the check.
        memory_bytes: memory to check; None takes 80% of what is free on a GPU, or one chunk.
        size: rows and columns of the products.
        dtypes: data types of the products.
        matmul: computes the products.

    Raises:
        UserError: The device returned something else than was written, or than the CPU computes.
    """
    if memory_bytes is None:
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else CHUNK_BYTES
        memory_bytes = int(0.8 * free) if device.type == "cuda" else free
    started = time.monotonic()
    checked = check_memory(device, memory_bytes, until=started + seconds / 3)
    bandwidth = copy_bandwidth(device)
    products = 0
    until = started + seconds
    for number, dtype in enumerate(dtypes):
        share = (until - time.monotonic()) / (len(dtypes) - number)
        end = time.monotonic() + share
        products += check_products(device, dtype, size=size, until=end, matmul=matmul)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return DeviceReport(memory_bytes=checked, products=products, copy_bandwidth=bandwidth)


def check_memory(device: torch.device, memory_bytes: int, *, until: float) -> int:
    """Write patterns to memory and read them again; return the number of bytes checked.

    At least one chunk is checked, whatever the time.

    Raises:
        UserError: A word was read that was not written.
    """
    chunks = list(_chunks(device, memory_bytes))
    checked = set[int]()
    for pattern in PATTERNS:
        for chunk in chunks:
            chunk.fill_(pattern)
        for number, chunk in enumerate(chunks):
            if checked and time.monotonic() > until:
                break
            if wrong := int((chunk != pattern).sum()):
                raise _fault(device, f"{wrong:,} of {chunk.numel():,} words of memory are wrong")
            checked.add(number)
    # Each word with its own number: an address line that is stuck writes two words to one place.
    for number, chunk in enumerate(chunks):
        torch.arange(number << 32, (number << 32) + len(chunk), out=chunk)
    for number, chunk in enumerate(chunks):
        if number and time.monotonic() > until:
            break
        expected = torch.arange(number << 32, (number << 32) + len(chunk), device=device)
        if wrong := int((chunk != expected).sum()):
            raise _fault(device, f"{wrong:,} of {len(chunk):,} words of memory have moved")
        del expected
    return sum(chunks[number].nbytes for number in checked)


def _chunks(device: torch.device, memory_bytes: int) -> Iterator[torch.Tensor]:
    """Yield tensors of 64-bit words; fewer if the device has less memory than expected."""
    words = min(CHUNK_BYTES, memory_bytes) // 8
    for number in range(max(1, memory_bytes // CHUNK_BYTES)):
        try:
            yield torch.empty(words, dtype=torch.int64, device=device)
        except torch.OutOfMemoryError:
            if not number:
                raise
            return


def check_products(
    device: torch.device,
    dtype: torch.dtype,
    *,
    size: int,
    until: float,
    matmul: Matmul = torch.matmul,
) -> int:
    """Compare matrix products with the CPU's until a time; return their number, at least one.

    Raises:
        UserError: A product differs.
    """
    generator = torch.Generator().manual_seed(0)
    a, b = (
        torch.randint(-1, 2, shape, generator=generator, dtype=torch.int32)
        for shape in ((size, INNER), (INNER, size))
    )
    expected = torch.matmul(a.to(torch.float32), b.to(torch.float32)).to(dtype).to(device)
    left, right = a.to(device, dtype), b.to(device, dtype)
    count = 0
    while not count or time.monotonic() < until:
        wrong = int((matmul(left, right) != expected).sum())  # waits for the device
        count += 1
        if wrong:
            raise _fault(
                device,
                f"{wrong:,} of {expected.numel():,} elements of matrix product {count} in "
                f"{str(dtype).removeprefix('torch.')} differ from the CPU's",
            )
    return count


def copy_bandwidth(device: torch.device, size: int = CHUNK_BYTES) -> float:
    """Return the bandwidth of a copy from host to device, in bytes per second."""
    source = torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
    target = torch.empty(size, dtype=torch.uint8, device=device)
    seconds = float("inf")
    for _ in range(3):
        started = time.monotonic()
        target.copy_(source)
        target[-1].item()  # waits for the copy
        seconds = min(seconds, max(time.monotonic() - started, 1e-9))
    return size / seconds


def _fault(device: torch.device, what: str) -> UserError:
    return UserError(
        f"the check of {device_name(device)} ({device}) on {socket.gethostname()} failed: {what}; "
        "take that node out of the cluster, or skip the check with --no-check-devices"
    )
