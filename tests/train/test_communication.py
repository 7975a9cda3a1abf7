"""Estimated communication time of a step, and the measured bandwidth."""

import torch
import torch.multiprocessing
from torch import distributed

from ochat_ray.train.communication import bus_bandwidth, communication_seconds

STEP = {"parameters": 1000, "width": 2, "workers": 4, "bandwidth": 100.0}


def test_zero_3_gathers_for_each_pass():
    # Per pack: 2 bytes twice and 4 once for 1000 parameters, three quarters from other workers.
    assert communication_seconds(packs=3, zero_stage=3, **STEP) == 0.75 * 3 * 8000 / 100


def test_the_other_stages_gather_once_per_step():
    assert communication_seconds(packs=3, zero_stage=2, **STEP) == 0.75 * (2000 + 3 * 4000) / 100


def test_one_worker_needs_no_communication():
    alone = STEP | {"workers": 1, "bandwidth": float("inf")}
    assert communication_seconds(packs=3, zero_stage=3, **alone) == 0


def _measure(rank, address, found):
    distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    found[rank] = bus_bandwidth(torch.device("cpu"))
    distributed.destroy_process_group()


def test_workers_agree_on_the_bandwidth(tmp_path):
    found = torch.multiprocessing.Manager().list([0.0, 0.0])
    torch.multiprocessing.spawn(_measure, (f"file://{tmp_path}/meet", found), nprocs=2)
    assert found[0] == found[1] > 2**20
