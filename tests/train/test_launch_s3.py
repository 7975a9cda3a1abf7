"""Training data and model on S3, spoken to a real server of its protocol on loopback."""

import json
import os
import signal
import threading
import time

import boto3
import psutil
import pytest
import ray
from moto.server import ThreadedMotoServer
from transformers import AutoModelForCausalLM

from ochat_ray.run_dir import RunDir
from ochat_ray.tokenizer import load_tokenizer, tokenizer_digest
from ochat_ray.train import checkpoint as checkpoints
from ochat_ray.train.config import TrainConfig
from ochat_ray.train.launch import train
from ochat_ray.train.metrics import read_metrics
from tests.train.test_launch import write_data

pytestmark = pytest.mark.ray


@pytest.fixture
def bucket(monkeypatch):
    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="models")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield client
    ray.shutdown()
    server.stop()


def test_checkpoints_on_s3_are_gone_on_from(bucket, model_directory, tmp_path):
    tokenizer = load_tokenizer(str(model_directory))
    data = write_data("s3://models/data", tokenizer, tokenizer_digest(tokenizer))
    output = "s3://models/out/model"

    def kill():
        while not checkpoints.whole(RunDir.open(output)):
            time.sleep(0.05)
        for process in psutil.process_iter(["cmdline"]):
            if "RayTrainWorker" in " ".join(process.info["cmdline"] or []):
                os.kill(process.pid, signal.SIGKILL)
                return

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    result = train(
        TrainConfig(
            recipe="demo", data=data, model=str(model_directory), output=output, num_workers=2,
            epochs=8, sequences_per_step=2, max_tokens=128, learning_rate=1e-3, dtype="float32",
            checkpoint_every=7,
        )
    )  # fmt: skip
    assert not thread.is_alive()
    run = RunDir.open(output)
    assert [m["step"] for m in read_metrics(run) if "loss" in m] == list(range(1, 81))
    assert checkpoints.latest(run).step == 80
    for name in ("config.json", "model.safetensors", "ochat.json", "loss.png"):
        body = bucket.get_object(Bucket="models", Key=f"out/model/{name}")["Body"].read()
        (tmp_path / name).write_bytes(body)
    assert json.loads((tmp_path / "ochat.json").read_text()) == result
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config.vocab_size == len(tokenizer)
    keys = [o["Key"] for o in bucket.list_objects_v2(Bucket="models", Prefix="out/")["Contents"]]
    assert any("/tensorboard/events" in key for key in keys)
    assert len({key.split("/")[3] for key in keys if "/checkpoints/step-" in key}) == 2
