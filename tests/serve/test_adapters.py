"""LoRA adapters of a directory: scans, and answers through the API, against peft's own."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil

import pytest
import torch
from openai.types import Model as OpenAIModel

from ochat_ray.errors import UserError
from ochat_ray.serve.adapter_files import AdapterRules, base_shapes
from ochat_ray.serve.adapters import AdapterCatalog
from ochat_ray.serve.args import ServeArgs, resolve
from ochat_ray.serve.engines.base import Adapter, RequestRefusedError, Sampling
from ochat_ray.serve.engines.transformers import TransformersEngine
from tests.serve.adapter_directories import write_adapter
from tests.serve.asking import ASK, ask, error_of
from tests.serve.one_engine import app_with_adapters, opened, settings_of

MODELS = ("tiny", "one", "two")
PROMPTS = ([0, 40, 41, 42], [0, *range(60, 220)], [0, 7])


@pytest.fixture
def catalog(model_directory, tmp_path):
    rules = AdapterRules(base=base_shapes(model_directory), base_names=("tiny",), most_rank=8)
    (tmp_path / "adapters").mkdir()
    return AdapterCatalog(str(tmp_path / "adapters"), rules, reserved="tiny")


def test_an_adapter_that_appears_is_served_and_one_that_disappears_is_not(
    catalog, tmp_path, caplog
):
    caplog.set_level(logging.INFO, "ochat_ray.serve")
    directory = tmp_path / "adapters"
    catalog.scan()
    assert catalog.served == catalog.not_served == {}
    write_adapter(directory / "one", 1)
    write_adapter(directory / ".two", 2)  # as rsync writes one
    (directory / "notes.txt").write_text("")
    catalog.scan()
    assert catalog.served == {}
    assert "being written" in catalog.not_served["one"]
    catalog.scan()
    assert list(catalog.served) == ["one"]
    adapter, created = catalog.find("one")
    assert (adapter.name, adapter.directory) == ("one", str(directory / "one"))
    assert created == int((directory / "one/adapter_model.safetensors").stat().st_mtime)
    shutil.rmtree(directory / "one")
    catalog.scan()
    assert catalog.served == catalog.not_served == {}
    assert caplog.messages == [
        f"adapter one: served, digest {adapter.digest[:16]}",
        "adapter one: removed",
    ]


def test_a_damaged_adapter_is_logged_once_and_harms_no_other(catalog, tmp_path, caplog):
    directory = tmp_path / "adapters"
    write_adapter(directory / "good", 1)
    write_adapter(directory / "bad", 2)
    catalog.scan()
    catalog.scan()
    good = catalog.find("good")
    weights = directory / "bad/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    for _ in range(3):
        catalog.scan()
    assert catalog.served == {"good": good}
    (line,) = caplog.messages
    assert line.startswith("adapter bad: not served: adapter_model.safetensors is incomplete")
    assert catalog.not_served == {"bad": line.removeprefix("adapter bad: not served: ")}
    write_adapter(directory / "bad", 2)
    catalog.scan()
    catalog.scan()
    assert set(catalog.served) == {"good", "bad"}


def test_identity_is_the_content_and_neither_name_nor_time(catalog, tmp_path):
    directory = write_adapter(tmp_path / "adapters/one", 1)
    weights = directory / "adapter_model.safetensors"
    catalog.scan()
    catalog.scan()
    before = catalog.find("one")[0]
    os.utime(weights)
    catalog.scan()
    assert catalog.find("one")[0] == before  # without an interruption
    stat = weights.stat()
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    catalog.scan()
    assert catalog.find("one") is None
    catalog.scan()
    assert catalog.find("one")[0].digest != before.digest
    content[-1] ^= 1
    weights.write_bytes(content)
    directory.rename(directory.parent / "renamed")
    catalog.scan()
    catalog.scan()
    assert catalog.find("one") is None
    assert catalog.find("renamed")[0].digest == before.digest


@pytest.mark.parametrize("name", ["tiny", "a b", "ü", "-x"])
def test_a_name_that_is_taken_or_not_plain_is_not_served(catalog, tmp_path, name):
    write_adapter(tmp_path / "adapters" / name, 1)
    catalog.scan()
    catalog.scan()
    assert catalog.served == {}
    assert "its name is the base's, or has" in catalog.not_served[name]


def test_a_directory_is_served_from_the_start_until_it_disappears(catalog, tmp_path, caplog):
    write_adapter(tmp_path / "adapters/one", 1)
    catalog.scan(settled_after_s=3600)
    assert catalog.served == {}
    catalog = AdapterCatalog(str(tmp_path / "adapters"), catalog._rules, reserved="tiny")
    catalog.scan(settled_after_s=0)  # as at the start of a server, which need not wait
    assert list(catalog.served) == ["one"]
    shutil.rmtree(tmp_path / "adapters")
    catalog.scan()
    assert catalog.served == {}
    assert "cannot be read: FileNotFoundError" in caplog.text


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"adapters": "/nowhere"}, "adapters=/nowhere is not a directory"),
        ({"adapters": "s3://bucket/adapters"}, "is not a directory"),
        ({"adapters": ""}, "adapters= is not a directory"),
        ({"max_adapter_rank": 8}, "max_adapter_rank: only with adapters"),
        ({"adapters": "/tmp", "engine": "scripted"}, "the scripted engine has none"),
        ({"embeddings": True, "engine": "scripted"}, "the scripted engine has none; give engine="),
    ],
)
def test_arguments_that_the_engine_cannot_meet_are_one_line(model_directory, fields, text):
    args = {"model": str(model_directory), "engine": "transformers", **fields}
    with pytest.raises(UserError, match=text):
        resolve(ServeArgs(**args))


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    directory = tmp_path_factory.mktemp("adapters")
    write_adapter(directory / "one", 1)
    targets = ("gate_proj", "o_proj", "k_proj")
    write_adapter(directory / "two", 2, rank=8, targets=targets, use_rslora=True)
    write_adapter(directory / "wrong", 3, base_model_name_or_path="other")
    return directory


@pytest.fixture(scope="module")
def settings(model_directory, adapters):
    return settings_of(
        model_directory,
        context_length=256,
        max_ongoing=12,
        max_batch_tokens=32,
        adapters=str(adapters),
    )


@pytest.fixture(scope="module")
def engine(settings):
    with opened(settings) as engine:
        yield engine


@pytest.fixture(scope="module")
def app(settings, engine, tokenizer):
    return app_with_adapters(settings, engine, tokenizer, context_length=256, fingerprint="fp_base")


@pytest.fixture(scope="module")
def expected(model_directory, adapters):
    """Greedy tokens and their log-probabilities by plain transformers, with peft's adapters."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    def answer(model, ids):
        with torch.no_grad():
            for _ in range(12):
                logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
                ids = [*ids, int(logs[-1].argmax())]
        return ids[-12:], [float(logs[at, ids[at]]) for at in range(-12, 0)]

    found = {}
    for name in MODELS:
        model = AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.float32).eval()
        if name != "tiny":
            model = PeftModel.from_pretrained(model, adapters / name).eval()
        found |= {(name, index): answer(model, ids) for index, ids in enumerate(PROMPTS)}
    return found


def test_requests_of_several_adapters_in_one_batch_answer_as_alone_and_as_peft(
    engine, app, expected, adapters
):
    """The prompts are the same for all models, so pages of another one's cache would show."""
    listed = {m["id"]: m.get("digest") for m in ask(app, "GET", "/v1/models").json()["data"]}

    async def answer(number, name, index):
        adapter = None
        if name != "tiny":
            directory = str(adapters / name)
            adapter = Adapter(name=name, directory=directory, digest=listed[name])
        rules = Sampling(max_tokens=12, temperature=0, top_logprobs=0, adapter=adapter)
        deltas = [d async for d in engine.submit(f"{number}", PROMPTS[index], rules)]
        tokens = [i for delta in deltas for i in delta.token_ids]
        return tokens, [e.logprob for d in deltas for e in d.logprobs], deltas[0].cached_tokens

    asked = [(name, index) for index in range(len(PROMPTS)) for name in MODELS]

    async def all_answers():
        alone = [await answer(0, *one) for one in asked]
        mixed = await asyncio.gather(*[answer(i, *one) for i, one in enumerate(asked)])
        return alone, mixed

    alone, mixed = asyncio.run(all_answers())
    for one, first, second in zip(asked, alone, mixed, strict=True):
        tokens, logprobs = expected[one]
        assert first[0] == second[0] == tokens, one
        assert first[1] == pytest.approx(logprobs, abs=1e-4)
        assert second[1] == pytest.approx(logprobs, abs=1e-4)
        # Each model finds its own first page, and only that, in the cache.
        assert (first[2], second[2]) == (0, 128 if one[1] == 1 else 0)
    assert len({tuple(tokens) for tokens, *_ in alone}) == len(asked)


def test_a_base_request_is_bit_identical_to_a_server_without_adapters(engine, settings):
    from dataclasses import replace

    plain = TransformersEngine(replace(settings.engine, adapters=None))

    async def answer(engine, ids):
        rules = Sampling(max_tokens=12, temperature=1, seed=7, top_logprobs=20)
        return [entry async for d in engine.submit("r", ids, rules) for entry in d.logprobs]

    try:
        for ids in PROMPTS:
            assert asyncio.run(answer(engine, ids)) == asyncio.run(answer(plain, ids))
    finally:
        plain.close()


def test_models_lists_adapters_with_parent_and_digest(app):
    body = ask(app, "GET", "/v1/models").json()
    base, *others = body["data"]
    assert not {"parent", "digest"} & set(base)
    assert [model["id"] for model in others] == ["one", "two"]
    assert {model["parent"] for model in others} == {"tiny"}
    assert len({model["digest"] for model in others}) == 2
    for model in others:
        OpenAIModel.model_validate(model, strict=True)
        assert ask(app, "GET", f"/v1/models/{model['id']}").json() == model
    (wrong,) = body["not_served"]
    assert wrong["id"] == "wrong"
    assert "is not this server's model" in wrong["reason"]


def test_a_request_names_its_adapter_in_answer_and_fingerprint(app, engine):
    bodies = {
        name: ask(app, path="/v1/completions", json={"model": name, "prompt": "a"}).json()
        for name in MODELS
    }
    assert {name: body["model"] for name, body in bodies.items()} == {n: n for n in MODELS}
    prints = {name: body["system_fingerprint"] for name, body in bodies.items()}
    assert prints["tiny"] == "fp_base"
    assert len(set(prints.values())) == 3
    chat = ask(app, json={**ASK, "model": "one", "max_tokens": 3, "stream": True})
    assert '"model":"one"' in chat.text
    assert chat.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/chat/completions", {"messages": ASK["messages"]}),
        ("/v1/responses", {"input": "a"}),
        ("/tokenize", {"prompt": "a"}),
    ],
)
def test_an_adapter_that_is_not_served_is_refused_by_name(app, path, fields):
    error = error_of(ask(app, path=path, json={"model": "wrong", **fields}), 404)
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "the adapter 'wrong' is not served: base_model_name_or_path" in error["message"]
    error = error_of(ask(app, path=path, json={"model": "missing", **fields}), 404)
    assert "no model 'missing'" in error["message"]


def test_files_that_changed_since_the_request_are_refused(engine, tmp_path):
    adapter = Adapter(name="x", directory=str(write_adapter(tmp_path / "x", 5)), digest="0" * 64)
    gone = Adapter(name="y", directory=str(tmp_path / "y"), digest="1" * 64)

    async def answer(adapter):
        rules = Sampling(max_tokens=2, adapter=adapter)
        return [d async for d in engine.submit("r", [0, 5], rules)]

    with pytest.raises(RequestRefusedError, match="adapter 'x' is being replaced"):
        asyncio.run(answer(adapter))
    with pytest.raises(RequestRefusedError, match="adapter 'y' has no adapter_config"):
        asyncio.run(answer(gone))
