"""Input and output on S3, spoken to a real server of its protocol on loopback."""

import pytest

from ochat_ray.data import pipeline
from ochat_ray.data.config import PrepareConfig
from ochat_ray.run_dir import open_tokens, read_manifest
from tests.pages import share_page

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


def test_pages_on_s3_become_tables_on_s3(s3, tokenizer_directory):
    for n in range(30):
        items = [{"from": "human", "value": f"q{n}"}, {"from": "gpt", "value": f"<p>a{n}</p>"}]
        s3.put_object(
            Bucket="bucket", Key=f"pages/{n % 3}/{n}.html", Body=share_page(items, id=str(n))
        )
    config = PrepareConfig(
        recipe="openchat",
        input=("s3://bucket/pages",),
        output="s3://bucket/out",
        tokenizer=tokenizer_directory,
        keep_model="any",
        eval_ratio=0.3,
    )
    manifest = pipeline.prepare(config)
    assert manifest["counts"] == {"read": 30, "kept": 30, "dropped": {}, "passed_over": {}}
    assert read_manifest("s3://bucket/out") == manifest
    rows = sum(len(open_tokens("s3://bucket/out", split)) for split in ("train", "eval"))
    assert rows == 30
    keys = [o["Key"] for o in s3.list_objects_v2(Bucket="bucket", Prefix="out/")["Contents"]]
    assert not [key for key in keys if ".work" in key or ".tmp" in key]
    assert "out/report.html" in keys
