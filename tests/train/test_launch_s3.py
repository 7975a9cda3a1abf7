"""Training data and model on S3, spoken to a real server of its protocol on loopback."""

import json
import os
import shutil
import signal
import threading
import time

import pytest
from transformers import AutoModelForCausalLM

from ochat_ray.model_directory import on_this_host
from ochat_ray.run_dir import RunDir
from ochat_ray.tokenizer import load_tokenizer, tokenizer_digest
from ochat_ray.train import checkpoint as checkpoints
from ochat_ray.train.config import TrainConfig
from ochat_ray.train.launch import train
from ochat_ray.train.metrics import read_metrics
from tests.processes import descendants
from tests.token_tables import write_data

pytestmark = [
    pytest.mark.ray,
    # The thread that kills a worker must find one.
    pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning"),
]


def test_checkpoints_on_s3_are_gone_on_from(s3, model_directory, tmp_path):
    base = "s3://bucket/base"
    for file in model_directory.iterdir():
        s3.put_object(Bucket="bucket", Key=f"base/{file.name}", Body=file.read_bytes())
    tokenizer = load_tokenizer(base)
    data = write_data("s3://bucket/data", tokenizer, tokenizer_digest(tokenizer))
    output = "s3://bucket/out/model"

    def kill():
        while not checkpoints.whole(RunDir.open(output)):
            time.sleep(0.05)
        os.kill(descendants("RayTrainWorker")[0].pid, signal.SIGKILL)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    result = train(
        TrainConfig(
            recipe="demo", data=data, model=base, output=output, num_workers=2,
            epochs=8, sequences_per_step=2, max_tokens=128, learning_rate=1e-3, dtype="float32",
            checkpoint_every=7,
        )
    )  # fmt: skip
    shutil.rmtree(on_this_host(base))
    assert not thread.is_alive()
    run = RunDir.open(output)
    assert [m["step"] for m in read_metrics(run) if "loss" in m] == list(range(1, 81))
    assert checkpoints.latest(run).step == 80
    for name in ("config.json", "model.safetensors", "ochat.json", "loss.png"):
        body = s3.get_object(Bucket="bucket", Key=f"out/model/{name}")["Body"].read()
        (tmp_path / name).write_bytes(body)
    assert json.loads((tmp_path / "ochat.json").read_text()) == result
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config.vocab_size == len(tokenizer)
    keys = [o["Key"] for o in s3.list_objects_v2(Bucket="bucket", Prefix="out/")["Contents"]]
    assert any("/tensorboard/events" in key for key in keys)
    assert len({key.split("/")[3] for key in keys if "/checkpoints/step-" in key}) == 2
