"""/v1/embeddings by a tiny model, against the hidden states of plain transformers."""

from __future__ import annotations

import asyncio
import base64

import httpx
import numpy as np
import pytest
import torch
from openai import AsyncOpenAI

from ochat_ray.serve.embeddings import MOST_VALUES
from ochat_ray.serve.engines.base import EngineOverloadedError, Sampling
from tests.serve.adapter_directories import write_adapter
from tests.serve.asking import ask, error_of
from tests.serve.one_engine import app_with_adapters, opened, settings_of
from tests.serve.script import Script, app_for

PATH = "/v1/embeddings"
TEXT = "Café 🙂 is"
LONG = [0, *([*range(1, 290)] * 3)[:700]]


@pytest.fixture(scope="module")
def settings(model_directory, tmp_path_factory):
    adapters = tmp_path_factory.mktemp("adapters")
    write_adapter(adapters / "one", 1)
    return settings_of(
        model_directory,
        context_length=1024,
        max_ongoing=8,
        max_batch_tokens=64,
        adapters=str(adapters),
        embeddings=True,
    )


@pytest.fixture(scope="module")
def engine(settings):
    with opened(settings) as engine:
        yield engine


@pytest.fixture(scope="module")
def app(settings, engine, tokenizer):
    size = settings.ingress.embedding_size
    limits = {"context_length": 1024, "max_body_bytes": 10**6}
    return app_with_adapters(settings, engine, tokenizer, embedding_size=size, **limits)


@pytest.fixture(scope="module")
def expected(model_directory, settings):
    """Computes the mean of the last hidden states, of length 1, by plain transformers."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.float32).eval()
    adapted = AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(adapted, f"{settings.engine.adapters.directory}/one").eval()

    def embedding(ids, model="tiny"):
        with torch.no_grad():
            used = base if model == "tiny" else adapted
            states = used(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0]
        mean = states.mean(0)
        return (mean / mean.norm()).tolist()

    return embedding


def embed(app, **fields):
    response = ask(app, path=PATH, json={"model": "tiny", **fields})
    assert response.status_code == 200, response.text
    return response.json()


def near(values):
    return pytest.approx(values, abs=1e-5)


def test_every_form_of_input_gives_the_mean_of_the_last_hidden_states(app, expected, tokenizer):
    text = [0, *tokenizer.encode(TEXT, add_special_tokens=False)]
    ids = [5, 40, 41, 42]
    for given, prompts in (
        (TEXT, [text]),
        (ids, [ids]),
        ([TEXT, "a"], [text, [0, *tokenizer.encode("a")]]),
        ([ids, LONG, [7]], [ids, LONG, [7]]),
    ):
        body = embed(app, input=given)
        assert (body["object"], body["model"]) == ("list", "tiny")
        assert [item["index"] for item in body["data"]] == list(range(len(prompts)))
        for item, prompt in zip(body["data"], prompts, strict=True):
            assert item["object"] == "embedding"
            assert item["embedding"] == near(expected(prompt))
            assert np.linalg.norm(item["embedding"]) == near(1.0)
        count = sum(map(len, prompts))
        assert body["usage"] == {"prompt_tokens": count, "total_tokens": count}


def test_base64_has_the_same_numbers(app):
    numbers = embed(app, input=TEXT, encoding_format="float")["data"][0]["embedding"]
    text = embed(app, input=TEXT, encoding_format="base64", dimensions=64)["data"][0]["embedding"]
    assert np.frombuffer(base64.b64decode(text), "<f4").tolist() == near(numbers)


def test_the_official_client_reads_it(app, expected):
    async def call():
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport) as http:
            client = AsyncOpenAI(base_url="http://127.0.0.1/v1", api_key="x", http_client=http)
            return await client.embeddings.create(model="tiny", input=[[5, 40], [7]])

    found = asyncio.run(call())
    assert [item.embedding for item in found.data] == [near(expected([5, 40])), near(expected([7]))]


def test_an_adapter_has_embeddings_of_its_own(app, expected):
    body = embed(app, model="one", input=LONG)
    assert body["model"] == "one"
    assert body["data"][0]["embedding"] == near(expected(LONG, "one"))
    assert body["data"][0]["embedding"] != pytest.approx(expected(LONG), abs=1e-2)


def test_embeddings_beside_answers_change_neither(engine, app, expected):
    """Prompts of several passes, in one batch with decoding requests."""

    async def answer(name):
        rules = Sampling(max_tokens=60, temperature=0)
        deltas = [d async for d in engine.submit(name, [0, 5, 6], rules)]
        assert all(delta.embedding is None for delta in deltas)
        return [i for delta in deltas for i in delta.token_ids]

    async def together():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app)) as http:
            url = f"http://127.0.0.1{PATH}"
            prompts = [LONG[: 400 + 50 * i] for i in range(6)]
            asked = http.post(url, json={"model": "tiny", "input": prompts})
            first, response = await asyncio.gather(answer("a"), asked)
            return first, prompts, response.json()

    first, prompts, body = asyncio.run(together())
    assert first == asyncio.run(answer("b"))
    for item, prompt in zip(body["data"], prompts, strict=True):
        assert item["embedding"] == near(expected(prompt))


@pytest.mark.parametrize(
    ("fields", "param", "text"),
    [
        ({"input": ""}, "input", "is empty"),
        ({"input": []}, "input", "is empty"),
        ({"input": ["a", ""]}, "input", "one of the inputs is empty"),
        ({"input": [1.5]}, "input", ""),
        ({"input": [301]}, "input", "301"),
        ({"input": ["a"] * 2049}, "input", "has 2049 inputs, of at most 2048"),
        ({"input": [1] * 1024}, "input", "maximum context length is 1023 tokens"),
        ({"input": [[7] * 1000] * 301}, "input", "300000 per request"),
        ({"input": "a", "dimensions": 32}, "dimensions", "have 64"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format", ""),
        ({"input": "a", "truncate": "END"}, "truncate", "unsupported field"),
    ],
)
def test_what_is_not_there_is_refused_by_name(app, fields, param, text):
    error = error_of(ask(app, path=PATH, json={"model": "tiny", **fields}), 400)
    assert error["param"].startswith(param)
    assert text in error["message"]


def test_a_server_without_embeddings_names_the_argument(tokenizer):
    script = Script(tokenizer)
    answer = ask(app_for(tokenizer, script), path=PATH, json={"model": "tiny", "input": "a"})
    error = error_of(answer, 404)
    assert error["code"] == "embeddings_not_enabled"
    assert "embeddings=true" in error["message"]
    assert script.seen == []


def test_wide_embeddings_limit_the_number_of_inputs(tokenizer):
    app = app_for(tokenizer, Script(tokenizer), embedding_size=MOST_VALUES // 3)
    error = error_of(ask(app, path=PATH, json={"model": "tiny", "input": ["a"] * 4}), 400)
    assert error["code"] == "too_many_inputs"


def test_limits_keys_and_failures_are_those_of_other_requests(tokenizer):
    body = {"model": "tiny", "input": [[1, 2, 3], [4]]}
    script = Script(tokenizer, error=EngineOverloadedError("full"))
    app = app_for(tokenizer, script, embedding_size=64, tokens_per_minute=3)
    answer = ask(app, path=PATH, json=body)
    assert error_of(answer, 429)["code"] == "overloaded"
    assert answer.headers["x-ratelimit-limit-tokens"] == "3"
    # Its four tokens overdrew the bucket.
    assert error_of(ask(app, path=PATH, json=body), 429)["code"] == "rate_limit_exceeded"
    hanging = Script(tokenizer, late_s=60)
    app = app_for(tokenizer, hanging, embedding_size=64, request_timeout_s=0.1)
    # The scripted engine has no embeddings, but this one is not asked before the deadline.
    assert error_of(ask(app, path=PATH, json=body), 503)["code"] == "deadline_exceeded"
    assert hanging.open == 0


def test_a_request_of_many_inputs_uses_half_of_a_replica(tokenizer):
    class Counting(Script):
        now = most = 0

        async def generate(self, request_id, prompt_ids, sampling, *, session):
            self.now += 1
            self.most = max(self.most, self.now)
            await asyncio.sleep(0.01)
            self.now -= 1
            async for item in super().generate(request_id, prompt_ids, sampling, session=session):
                yield item

    script = Counting(tokenizer, error=EngineOverloadedError("full"))
    app = app_for(tokenizer, script, embedding_size=64, choices_at_once=3)
    ask(app, path=PATH, json={"model": "tiny", "input": [[1]] * 20})
    assert script.most == 3
