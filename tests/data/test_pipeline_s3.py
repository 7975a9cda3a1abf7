"""Input and output on S3, spoken to a real server of its protocol on loopback."""

import boto3
import pytest
import ray
from moto.server import ThreadedMotoServer

from ochat_ray.data import pipeline
from ochat_ray.data.config import PrepareConfig
from ochat_ray.run_dir import open_tokens, read_manifest
from tests.pages import share_page

pytestmark = pytest.mark.ray


@pytest.fixture
def bucket(monkeypatch):
    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="chats")
    # Workers inherit the environment of the Ray that starts here.
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield client
    ray.shutdown()
    server.stop()


def test_pages_on_s3_become_tables_on_s3(bucket, tokenizer_directory):
    for n in range(30):
        items = [{"from": "human", "value": f"q{n}"}, {"from": "gpt", "value": f"<p>a{n}</p>"}]
        bucket.put_object(
            Bucket="chats", Key=f"pages/{n % 3}/{n}.html", Body=share_page(items, id=str(n))
        )
    config = PrepareConfig(
        recipe="openchat",
        input=("s3://chats/pages",),
        output="s3://chats/out",
        tokenizer=tokenizer_directory,
        keep_model="any",
        eval_ratio=0.3,
    )
    manifest = pipeline.prepare(config)
    assert manifest["counts"] == {"read": 30, "kept": 30, "dropped": {}}
    assert read_manifest("s3://chats/out") == manifest
    rows = sum(len(open_tokens("s3://chats/out", split)) for split in ("train", "eval"))
    assert rows == 30
    keys = [o["Key"] for o in bucket.list_objects_v2(Bucket="chats", Prefix="out/")["Contents"]]
    assert not [key for key in keys if ".work" in key or ".tmp" in key]
    assert "out/report.html" in keys
