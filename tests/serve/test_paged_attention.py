"""Attention over pages, against the textbook's formula; and models through the engine."""

from __future__ import annotations

import asyncio

import pytest
import torch

from ochat_ray.serve.engines.base import Sampling
from ochat_ray.serve.engines.paged_attention import PAGED_SDPA, decode, plan_batch, suits
from ochat_ray.serve.settings import EngineSettings

PAGE = 4


def test_a_plan_sorts_requests_by_what_is_new():
    # A whole prompt of 3, a rest of 2 behind 5 tokens in pages 6 and 2, and one token behind 8 in
    # pages 3, 0 and 9.
    index = [0, 1, 2, *range(24, 28), *range(8, 11), *range(12, 16), *range(4), 36]
    plan = plan_batch(
        [0, 3, 5, 6], [0, 3, 10, 19], torch.tensor(index), page_tokens=PAGE, dtype=torch.float32
    )
    whole, rest = plan.prefills
    assert (whole.start, whole.end, whole.index, whole.mask) == (0, 3, None, None)
    assert (rest.start, rest.end) == (3, 5)
    assert rest.index.tolist() == index[3:10]
    assert rest.mask.int().tolist() == [[1] * 6 + [0], [1] * 7]
    decodes = plan.decodes
    assert decodes.tokens.tolist() == [5]
    assert decodes.pages.tolist() == [3, 0, 9]
    assert decodes.owners.tolist() == [0, 0, 0]
    assert (decodes.slots, decodes.most) == (None, 3)
    inf = float("inf")
    assert decodes.mask.flatten(1).tolist() == [[0] * 4, [0] * 4, [0, -inf, -inf, -inf]]


@pytest.mark.parametrize("lengths", [[4, 2, 3], [9, 12], [1, 17, 6, 8]])
def test_decoding_is_softmax_of_queries_and_keys_times_values(lengths):
    """Some requests share their first page; what is not written is another's leavings."""
    generator = torch.Generator().manual_seed(0)
    heads, kv_heads, size = 6, 2, 8
    key_pages, value_pages = torch.randn(2, 20, PAGE, kv_heads, size, generator=generator)
    query = torch.randn(len(lengths), heads, size, generator=generator)
    numbers = iter(torch.randperm(19, generator=generator).add(1).tolist())
    rows = [[0, *(next(numbers) for _ in range((n - 1) // PAGE))] for n in lengths]
    index = [
        page * PAGE + offset
        for pages, length in zip(rows, lengths, strict=True)
        for page in pages
        for offset in range(PAGE)
        if pages.index(page) * PAGE + offset < length
    ]
    borders = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    plan = plan_batch(
        list(range(len(lengths) + 1)),
        borders,
        torch.tensor(index),
        page_tokens=PAGE,
        dtype=torch.float32,
    )
    single = [prefill.start for prefill in plan.prefills]  # one token is its own whole prompt
    asked = [row for row in range(len(lengths)) if row not in single]
    got = decode(query[asked], key_pages, value_pages, plan.decodes, 0.3)
    for result, row in zip(got, asked, strict=True):
        keys = key_pages.view(-1, kv_heads, size)[index[borders[row] : borders[row + 1]]]
        values = value_pages.view(-1, kv_heads, size)[index[borders[row] : borders[row + 1]]]
        for head in range(heads):
            weights = (0.3 * keys[:, head // 3] @ query[row, head]).softmax(0)
            assert torch.allclose(result[head], weights @ values[:, head // 3], atol=1e-5)


def tiny(model_type, **options):
    from transformers import AutoConfig

    return AutoConfig.for_model(
        model_type,
        vocab_size=300,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        initializer_range=0.5,
        **options,
    )


@pytest.mark.parametrize(
    ("config", "ours"),
    [
        (tiny("mistral", num_key_value_heads=2, sliding_window=None), True),
        (tiny("qwen2", num_key_value_heads=2), True),
        (tiny("qwen3", num_key_value_heads=2, head_dim=16), True),
        (tiny("phi3", num_key_value_heads=4, sliding_window=None, pad_token_id=0), True),
        (tiny("gpt_neox"), True),
        (tiny("mistral", num_key_value_heads=2, sliding_window=16), False),
        (tiny("gemma2", num_key_value_heads=2, head_dim=16, sliding_window=16), False),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_other_models_say_what_generate_says(config, ours, tmp_path):
    """Prompts of one token, of one pass and of several; then a long way through two pages."""
    from transformers import AutoModelForCausalLM

    from ochat_ray.serve.engines.transformers import TransformersEngine

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(tmp_path)
    prompts = [[7], [0, 40, 41, 42], [0, *range(60, 160)]]
    wanted = [
        model.generate(
            torch.tensor([p]),
            attention_mask=torch.ones(1, len(p)),
            max_new_tokens=40,
            do_sample=False,
            eos_token_id=-1,
        ).tolist()[0][len(p) :]
        for p in prompts
    ]
    engine = TransformersEngine(
        EngineSettings(
            directory=str(tmp_path),
            engine="transformers",
            dtype="float32",
            context_length=256,
            num_cpus=1,
            num_gpus=0,
            max_ongoing=4,
            max_batch_tokens=32,
            vocabulary=300,
            kv_cache_gib=None,
        )
    )

    async def answer(name, prompt):
        rules = Sampling(max_tokens=40, temperature=0)
        return [i async for d in engine.submit(name, prompt, rules) for i in d.token_ids]

    async def answers():
        return await asyncio.gather(*[answer(str(i), p) for i, p in enumerate(prompts)])

    try:
        assert suits(config) is ours
        assert (engine._model.config._attn_implementation == PAGED_SDPA) is ours
        assert asyncio.run(answers()) == wanted
    finally:
        engine.close()
