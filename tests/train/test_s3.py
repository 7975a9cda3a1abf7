"""Training on S3, with a server of its protocol on loopback and a killed worker."""

import json
import shutil
import time

import pytest
import ray
from transformers import AutoModelForCausalLM

from ochat_ray.models.model_directory import on_this_host
from ochat_ray.run_dir import RunDir
from ochat_ray.tokenization.tokenizer import load_tokenizer, tokenizer_digest
from ochat_ray.train import checkpoint as checkpoints
from ochat_ray.train.launch import train
from ochat_ray.train.metrics import read_metrics
from tests.token_tables import write_data
from tests.train.runs import STEPS, kill_a_worker, steps_of

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,  # a minute; the cluster's tests train on such a server, too
    # The thread that kills a worker must find one.
    pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning"),
]


def delay_the_last_worker():
    """Delay the upload of its part of a checkpoint."""
    from ray.train.v2._internal.execution.context import TrainContext

    upload = TrainContext._upload_checkpoint

    def delayed(context, *args, **kwargs):
        if context.get_world_rank() > 0:
            time.sleep(0.5)
        return upload(context, *args, **kwargs)

    TrainContext._upload_checkpoint = delayed


@pytest.fixture
def ray_with_a_slow_worker(shared_ray):
    ray.shutdown()
    shared_ray(runtime_env={"worker_process_setup_hook": delay_the_last_worker})
    yield
    ray.shutdown()


@pytest.mark.usefixtures("ray_with_a_slow_worker")
def test_a_killed_worker_affects_only_the_time(
    s3, undisturbed, configured, model_directory, tmp_path
):
    base = "s3://bucket/base"
    for file in model_directory.iterdir():
        s3.put_object(Bucket="bucket", Key=f"base/{file.name}", Body=file.read_bytes())
    tokenizer = load_tokenizer(base)
    data = write_data("s3://bucket/data", tokenizer, tokenizer_digest(tokenizer))
    output = "s3://bucket/out/model"
    run = RunDir.open(output)
    killer = kill_a_worker(lambda: checkpoints.list_complete(run))
    result = train(configured(output, data=data, model=base))
    shutil.rmtree(on_this_host(base))
    assert not killer.is_alive()
    _, expected = undisturbed
    assert result["eval_after"]["loss"] == pytest.approx(expected["eval_after"]["loss"], abs=1e-6)
    assert [m["step"] for m in steps_of(read_metrics(run))] == list(range(1, STEPS + 1))
    last = checkpoints.latest(run)
    assert last.step == STEPS
    # It has the part of the worker that takes longer to send it, too.
    assert len([name for name in last.files if name.endswith("optim_states.pt")]) == 2
    names = [checkpoint.name for checkpoint in checkpoints.list_complete(run)]
    assert len({name.rsplit("-", 1)[1] for name in names}) == 1  # of the second attempt alone
    for name in ("config.json", "model.safetensors", "ochat.json", "loss.png"):
        body = s3.get_object(Bucket="bucket", Key=f"out/model/{name}")["Body"].read()
        (tmp_path / name).write_bytes(body)
    assert json.loads((tmp_path / "ochat.json").read_text()) == result
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config.vocab_size == len(tokenizer)
    keys = [o["Key"] for o in s3.list_objects_v2(Bucket="bucket", Prefix="out/")["Contents"]]
    assert any("/tensorboard/events" in key for key in keys)
    assert len({key.split("/")[3] for key in keys if "/checkpoints/step-" in key}) == 2
