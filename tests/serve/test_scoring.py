"""Log-probabilities of prompts through the API, by a tiny model, against a plain forward pass."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from tests.serve.asking import ask, error_of, events
from tests.serve.one_engine import OneEngine, opened, settings_of
from tests.serve.script import Script, app_for

PATH = "/v1/completions"
TEXT = "Café 🙂 is"


@pytest.fixture(scope="module")
def app(two_headed_model, tokenizer):
    with opened(settings_of(two_headed_model, context_length=256, max_ongoing=4)) as engine:
        yield app_for(
            tokenizer,
            OneEngine(engine),
            context_length=256,
            max_body_bytes=10**6,
            fingerprint="fp_1",
        )


@pytest.fixture(scope="module")
def logs(two_headed_model):
    """Computes [tokens - 1, vocabulary]: row i scores token i + 1."""
    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(two_headed_model, dtype=torch.float32).eval()

    def logs(ids):
        with torch.no_grad():
            return model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)

    return logs


def complete(app, **fields):
    response = ask(app, path=PATH, json={"model": "tiny", "temperature": 0, **fields})
    assert response.status_code == 200, response.text
    return response.json()


def scores(logs, ids):
    return [None, *(float(row[i]) for row, i in zip(logs(ids), ids[1:], strict=True))]


def near(values):
    return [value if value is None else pytest.approx(value, abs=1e-4) for value in values]


def test_an_echoed_prompt_is_scored_in_openais_legacy_layout(app, logs, tokenizer):
    ids = [0, *tokenizer.encode(TEXT, add_special_tokens=False)]
    body = complete(app, prompt=TEXT, echo=True, logprobs=2, max_tokens=0)
    (choice,) = body["choices"]
    assert (choice["text"], choice["finish_reason"]) == (TEXT, "length")
    found = choice["logprobs"]
    assert found["token_logprobs"] == near(scores(logs, ids))
    assert found["top_logprobs"][0] is None
    for token, own, top, row in zip(
        found["tokens"][1:],
        found["token_logprobs"][1:],
        found["top_logprobs"][1:],
        logs(ids),
        strict=True,
    ):
        assert top[token] == own
        assert max(top.values()) == pytest.approx(float(row.max()), abs=1e-4)
        assert len(top) in (2, 3)
    assert found["tokens"][0] == "<s>"
    # Each token's text begins at its offset; those of one character share one.
    before = [tokenizer.decode(ids[1:end]) for end in range(1, len(ids))]
    assert found["text_offset"] == [0, *(len(text.rstrip("\ufffd")) for text in before)]
    usage = body["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (len(ids), 0)
    assert body["system_fingerprint"] == "fp_1"


@pytest.mark.parametrize("stop", [False, True])
def test_with_an_answer_its_tokens_follow_those_of_the_prompt(app, logs, stop):
    """lm-eval takes off the entries of one generated token: it has one, also if it stops."""
    ids = [5, 40, 41, 42]
    best = int(logs([*ids, 0])[-1].argmax())
    fields = {"stop_token_ids": [best]} if stop else {}
    (choice,) = complete(app, prompt=ids, echo=True, logprobs=1, max_tokens=1, **fields)["choices"]
    assert choice["finish_reason"] == ("stop" if stop else "length")
    found = choice["logprobs"]
    assert found["token_logprobs"] == near(scores(logs, [*ids, best]))
    assert len(found["text_offset"]) == len(ids) + 1


def test_lists_of_prompts_are_scored_each(app, logs):
    prompts = [[0, 40 + i, *range(60, 70 + i)] for i in range(3)]
    body = complete(app, prompt=prompts, echo=True, logprobs=0, max_tokens=0, n=2)
    found = [choice["logprobs"]["token_logprobs"] for choice in body["choices"]]
    assert found == [near(scores(logs, ids)) for ids in prompts for _ in range(2)]
    assert all(
        len(top) == 1
        for choice in body["choices"]
        for top in choice["logprobs"]["top_logprobs"][1:]
    )


def test_a_stream_begins_with_the_prompt(app, logs):
    ids = [0, *range(60, 90)]
    fields = {"model": "tiny", "prompt": ids, "echo": True, "logprobs": 1, "max_tokens": 4}
    whole = complete(app, **fields)["choices"][0]
    response = ask(app, path=PATH, json=fields | {"stream": True, "temperature": 0})
    parts = [json.loads(part)["choices"][0] for part in events(response)[:-1]]
    assert "".join(part["text"] for part in parts) == whole["text"]
    for name in ("token_logprobs", "tokens", "text_offset", "top_logprobs"):
        joined = [value for part in parts for value in part["logprobs"][name]]
        if name != "top_logprobs":
            assert joined == (
                near(whole["logprobs"][name])
                if name == "token_logprobs"
                else whole["logprobs"][name]
            )
    (echoed,) = complete(app, prompt=ids, echo=True, max_tokens=4)["choices"]
    assert (echoed["text"], echoed["logprobs"]) == (whole["text"], None)


def test_prompt_logprobs_are_vllms(app, logs, tokenizer):
    ids = [0, 40, 41, 42]
    (choice,) = complete(app, prompt=ids, prompt_logprobs=2, max_tokens=2)["choices"]
    first, *others = choice["prompt_logprobs"]
    assert first is None
    assert choice["logprobs"] is None
    for row, token_id, entry in zip(logs(ids), ids[1:], others, strict=True):
        own = entry[str(token_id)]
        assert own["logprob"] == pytest.approx(float(row[token_id]), abs=1e-4)
        assert own["rank"] == int((row > row[token_id]).sum()) + 1
        assert own["decoded_token"] == tokenizer.decode([token_id])
        likeliest = row.topk(2).indices.tolist()
        assert set(entry) == {str(i) for i in (*likeliest, token_id)}
        assert [entry[str(i)]["rank"] for i in likeliest] == [1, 2]


def test_prompt_logprobs_of_a_chat(app, logs, tokenizer):
    from ochat_ray.tokenization.template import encode

    messages = [{"role": "user", "content": "hi"}]
    body = {"model": "tiny", "messages": messages, "max_tokens": 2, "prompt_logprobs": 0}
    found = ask(app, json=body).json()["prompt_logprobs"]
    turns = [{"role": "user", "text": "hi"}]
    ids, _ = encode(turns, "openchat", tokenizer, add_generation_prompt=True)
    wanted = scores(logs, ids)[1:]
    assert [entry[str(i)]["logprob"] for i, entry in zip(ids[1:], found[1:], strict=True)] == (
        near(wanted)
    )
    assert "prompt_logprobs" not in ask(app, json=body | {"prompt_logprobs": None}).json()


def test_what_was_in_the_cache_is_scored_and_counted(app, logs):
    ids = [0, *[(17 * i) % 250 + 30 for i in range(200)]]
    assert complete(app, prompt=ids)["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
    usage = complete(app, prompt=[ids, ids], n=2)["usage"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 256}  # two pages, once per prompt
    body = complete(app, prompt=ids, echo=True, logprobs=0, max_tokens=0)
    assert body["choices"][0]["logprobs"]["token_logprobs"] == near(scores(logs, ids))


def test_requests_at_the_same_time_do_not_meet(app, logs):
    prompts = [[0, 40 + i, *range(60, 120 - i)] for i in range(12)]

    async def send():
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            bodies = [
                {"model": "tiny", "prompt": ids, "echo": True, "logprobs": 1, "max_tokens": 1}
                for ids in prompts
            ]
            return await asyncio.gather(*[client.post(PATH, json=body) for body in bodies])

    for ids, response in zip(prompts, asyncio.run(send()), strict=True):
        found = response.json()["choices"][0]["logprobs"]["token_logprobs"]
        assert found[: len(ids)] == near(scores(logs, ids))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"echo": 1}, "echo"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ({"echo": True, "logprobs": 20, "n": 128, "prompt": list(range(3, 100))}, "echo"),
        ({"prompt_logprobs": 20, "n": 128, "prompt": list(range(3, 100))}, "prompt_logprobs"),
        ({"echo": True, "n": 128, "prompt": [5] * 1600}, "prompt"),
        ({"echo": True, "max_tokens": 0, "prompt": [5] * 256}, "prompt"),
    ],
)
def test_what_cannot_be_scored_is_refused(app, fields, param):
    response = ask(app, path=PATH, json={"model": "tiny", "prompt": "a", **fields})
    assert error_of(response, 400)["param"] == param


@pytest.mark.parametrize("fields", [{"echo": True}, {"prompt_logprobs": 1}])
def test_an_engine_without_scores_refuses(tokenizer, fields):
    app = app_for(tokenizer, Script(tokenizer), engine="scripted")
    response = ask(app, path=PATH, json={"model": "tiny", "prompt": "a", **fields})
    assert error_of(response, 400)["param"] == next(iter(fields))
    plain = {"model": "tiny", "prompt": "a", "echo": False, "bad_words": []}
    assert ask(app, path=PATH, json=plain).status_code == 200
