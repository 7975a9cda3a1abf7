"""A worker whose part of a checkpoint takes longer than the others' to arrive."""

import time

import pytest
import ray

from ochat_ray.run_dir import RunDir
from ochat_ray.train import checkpoint as checkpoints
from ochat_ray.train.config import TrainConfig
from ochat_ray.train.launch import train

pytestmark = pytest.mark.ray


def delay_the_last_worker():
    from ray.train.v2._internal.execution.context import TrainContext

    upload = TrainContext._upload_checkpoint

    def delayed(context, *args, **kwargs):
        if context.get_world_rank() > 0:
            time.sleep(1)
        return upload(context, *args, **kwargs)

    TrainContext._upload_checkpoint = delayed


def test_a_checkpoint_is_whole_only_once_the_slowest_worker_has_sent_its_part(
    data, model_directory, tmp_path
):
    config = TrainConfig(
        recipe="demo", data=data, model=str(model_directory), output=str(tmp_path / "model"),
        num_workers=2, epochs=1, sequences_per_step=2, max_tokens=128, dtype="float32",
        checkpoint_every=5,
    )  # fmt: skip
    hook = {"worker_process_setup_hook": delay_the_last_worker}
    with ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False, runtime_env=hook):
        train(config)
    last = checkpoints.latest(RunDir.open(config.output))
    assert last.step == 10
    assert len([name for name in last.files if name.endswith("optim_states.pt")]) == 2
