"""Prompts of requests: what runs beside what."""

import asyncio
import time

import pytest

from ochat_ray.serve import prompts


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

    async def ask():
        return await asyncio.gather(*[encoder.text("x" * 20, bos=False) for _ in range(4)])

    assert asyncio.run(ask()) == [[1]] * 4
    assert max(at_once) == most
