"""Models that are served for the length of a block, beside what is served already."""

import httpx
import pytest
from ray import serve

from ochat_ray.serve.temporary import served
from tests.serve.application import deployed

pytestmark = pytest.mark.ray


def test_a_model_is_there_for_the_block_and_leaves_the_rest_alone(cluster, model_directory):
    with deployed(model_directory, "before"):
        name = "bases/one"  # a path, as that of a baseline
        with served({name: str(model_directory)}, on_gpu=True) as urls:
            assert urls[name].startswith(cluster)
            body = {"model": name, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
            answer = httpx.post(f"{urls[name]}/chat/completions", json=body, timeout=60)
            assert answer.status_code == 200
            assert answer.json()["usage"]["completion_tokens"] >= 1
        assert set(serve.status().applications) == {"before"}
        assert httpx.get(f"{urls[name]}/models").status_code == 404
        assert httpx.get(f"{cluster}/before/health").status_code == 200
