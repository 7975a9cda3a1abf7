"""Check of a device, on the CPU and on devices that compute or store something else."""

import pytest
import torch

from ochat_ray.errors import UserError
from ochat_ray.train import device_check
from ochat_ray.train.device_check import check_device, check_memory, check_products

CPU = torch.device("cpu")
PAST = 0.0
"""End of a check that is over: everything is done once."""


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(device_check, "CHUNK_BYTES", 8 * 1024)


def test_a_sound_device_passes():
    report = check_device(CPU, seconds=0.1, memory_bytes=64 * 1024, size=64)
    assert 8 * 1024 <= report.memory_bytes <= 64 * 1024
    assert report.products >= 2
    assert report.copy_bandwidth > 0


def test_all_memory_is_checked_if_there_is_time():
    assert check_memory(CPU, 5 * 8 * 1024, until=float("inf")) == 5 * 8 * 1024
    assert check_memory(CPU, 5 * 8 * 1024, until=PAST) == 8 * 1024


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_products_are_exact_in_every_data_type(dtype):
    assert check_products(CPU, dtype, size=300, until=PAST) == 1


def test_products_differ_from_zero_and_reach_beyond_ten():
    """A device that returns zeros, or saturates early, must not pass."""
    with pytest.raises(UserError, match="matrix product 1 in float32 differ"):
        check_products(
            CPU, torch.float32, size=64, until=PAST, matmul=lambda a, b: torch.zeros(64, 64)
        )
    with pytest.raises(UserError, match="differ"):
        check_products(
            CPU, torch.float32, size=64, until=PAST, matmul=lambda a, b: (a @ b).clamp(-10, 10)
        )


def test_one_wrong_element_in_a_later_product_is_found():
    calls = []

    def matmul(a, b):
        product = a @ b
        calls.append(1)
        if len(calls) == 3:
            product[5, 7] += 1
        return product

    with pytest.raises(
        UserError,
        match=r"the check of cpu \(cpu\) on \S+ failed: 1 of 4,096 elements of matrix product 3 in "
        r"bfloat16 differ from the CPU's; take that node out .* --no-check-devices",
    ):
        check_products(CPU, torch.bfloat16, size=64, until=float("inf"), matmul=matmul)


class Memory:
    """Chunk of memory with a fault: reads pass through `read`."""

    def __init__(self, words, read):
        self.tensor, self.read = torch.zeros(words, dtype=torch.int64), read
        self.nbytes = 8 * words

    def fill_(self, value):
        self.tensor.fill_(value)

    def numel(self):
        return len(self.tensor)

    def __len__(self):
        return len(self.tensor)

    def __ne__(self, other):
        return self.read(self.tensor.clone()) != other

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        out = kwargs.pop("out")
        function(*args, out=out.tensor, **kwargs)
        return out


def stuck_bit(words):
    words[3] |= 1 << 9
    return words


def aliased(words):
    words[512:] = words[:512]  # an address line that is stuck
    return words


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (stuck_bit, "1 of 1,024 words of memory are wrong"),
        (aliased, "512 of 1,024 words of memory have moved"),
    ],
)
def test_faulty_memory_is_found(monkeypatch, read, message):
    monkeypatch.setattr(device_check, "_chunks", lambda *_: [Memory(1024, read)])
    with pytest.raises(UserError, match=message):
        check_memory(CPU, 0, until=float("inf"))
