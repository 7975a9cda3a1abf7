"""Estimated communication time of a step, and the measured bandwidth."""

from dataclasses import replace

import torch
import torch.multiprocessing
from torch import distributed

from ochat_ray.train.communication import bus_bandwidth, communication_seconds
from ochat_ray.train.flops import ModelShape

SHAPE = ModelShape(
    layers=1, hidden=10, heads=1, kv_heads=1, head_size=10, intermediate=20, gated=True,
    vocabulary=7, parameters=1000, matmul_parameters=900, tied=False,
)  # fmt: skip
STEP = {"width": 2, "workers": 4, "bandwidth": 100.0}


def test_zero_3_gathers_for_each_pass():
    # Per pack: 2 bytes twice and 4 once for 1000 parameters, three quarters from other workers.
    assert communication_seconds(SHAPE, packs=3, zero_stage=3, **STEP) == 0.75 * 3 * 8000 / 100


def test_the_other_stages_gather_once_per_step():
    seconds = communication_seconds(SHAPE, packs=3, zero_stage=2, **STEP)
    assert seconds == 0.75 * (2000 + 3 * 4000) / 100


def test_frozen_parameters_are_only_gathered_and_quantized_ones_as_half_a_byte():
    adapters = replace(SHAPE, frozen_parameters=900, quantized_parameters=800)
    three = communication_seconds(adapters, packs=1, zero_stage=3, **STEP)
    assert three == 0.75 * (2 * (2 * 200 + 400) + 4 * 100) / 100
    two = communication_seconds(adapters, packs=1, zero_stage=2, **STEP)
    assert two == 0.75 * (2 * 100 + 4 * 100) / 100


def test_one_worker_needs_no_communication():
    alone = STEP | {"workers": 1, "bandwidth": float("inf")}
    assert communication_seconds(SHAPE, packs=3, zero_stage=3, **alone) == 0


def _measure(rank, address, found):
    distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    found[rank] = bus_bandwidth(torch.device("cpu"))
    distributed.destroy_process_group()


def test_workers_agree_on_the_bandwidth(tmp_path):
    found = torch.multiprocessing.Manager().list([0.0, 0.0])
    torch.multiprocessing.spawn(_measure, (f"file://{tmp_path}/meet", found), nprocs=2)
    assert found[0] == found[1] > 2**20
