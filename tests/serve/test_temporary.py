"""Models that are served for the length of a block, beside what is served already."""

import httpx
import pytest
from ray import serve

from ochat_ray.serve.temporary import served

pytestmark = pytest.mark.ray


def test_models_are_there_for_the_block_and_leave_the_rest_alone(cluster, model_directory):
    with served({"one": str(model_directory), "two": str(model_directory)}) as urls:
        for name, url in urls.items():
            assert url.startswith(cluster)
            body = {
                "model": name, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3,
            }  # fmt: skip
            answer = httpx.post(f"{url}/chat/completions", json=body, timeout=60)
            assert answer.status_code == 200
            assert answer.json()["usage"]["completion_tokens"] >= 1
    assert serve.status().applications == {}
    assert httpx.get(f"{urls['one']}/models").status_code == 404  # Serve itself is still there
