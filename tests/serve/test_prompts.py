"""Prompts of requests: what runs beside what."""

import asyncio
import time

import pytest

from ochat_ray.serve import prompts
from ochat_ray.serve.protocol.fields import MOST_MESSAGES
from tests.serve.asking import ask
from tests.serve.script import Script, app_for


@pytest.mark.parametrize(("huge", "most"), [(20, 1), (21, 4)])
def test_huge_texts_are_encoded_one_after_the_other(tokenizer, monkeypatch, huge, most):
    running, at_once = 0, []

    def encode(texts, _tokenizer):
        nonlocal running
        running += 1
        at_once.append(running)
        time.sleep(0.05)
        running -= 1
        return [[1] for _ in texts]

    monkeypatch.setattr(prompts, "LONG_TEXT", 10)
    monkeypatch.setattr(prompts, "HUGE_TEXT", huge)
    monkeypatch.setattr(prompts, "encode_texts", encode)
    encoder = prompts.Prompts(tokenizer, "openchat", 301)

    async def four():
        return await asyncio.gather(*[encoder.text("x" * 20, bos=False) for _ in range(4)])

    assert asyncio.run(four()) == [[1]] * 4
    assert max(at_once) == most


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize"])
@pytest.mark.parametrize("strict", [True, False])
def test_more_messages_than_any_server_takes_are_not_validated(tokenizer, path, strict):
    message = {"role": "user", "content": "hi"}
    body = {"model": "tiny", "messages": [message] * MOST_MESSAGES + [{"role": "nobody"}]}
    app = app_for(tokenizer, Script(tokenizer), max_body_bytes=10**7, strict=strict)
    response = ask(app, path=path, json=body)
    assert response.status_code == 400
    assert "has 8193 messages, of at most 8192" in response.json()["error"]["message"]
