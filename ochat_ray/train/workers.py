"""Number of workers, if it follows from the hardware: one per GPU, or one without GPUs."""

from __future__ import annotations

import os
from dataclasses import replace

from ochat_ray.train.config import TrainConfig
from ochat_ray.train.option_checks import check_workers


def with_workers(config: TrainConfig, *, start_ray: bool) -> TrainConfig:
    """Return the configuration with a number of workers; unchanged if it has one.

    Args:
        config: The options; `num_workers` may be 0.
        start_ray: Whether Ray is started, or joined, to count its GPUs. Otherwise only the cluster
            of a submitted job is asked, and without one the GPUs of this machine are counted.

    Raises:
        UserError: An option does not fit this number.
    """
    if config.num_workers:
        return config
    resolved = replace(config, num_workers=max(1, _gpus(start_ray=start_ray)))
    check_workers(resolved)
    return resolved


def _gpus(*, start_ray: bool) -> int:
    if start_ray or "RAY_ADDRESS" in os.environ:  # set in the jobs of a cluster
        from ochat_ray.cluster import ray_session
        from ochat_ray.cluster.resources import most

        ray_session.join_or_start()
        return most("GPU")
    import torch

    return torch.cuda.device_count()
