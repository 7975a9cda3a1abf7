"""What only the transformers engine has; the rest is in test_engine_contract.py."""

from __future__ import annotations

import asyncio

import pytest

from ochat_ray.errors import UserError
from ochat_ray.serve.args import ServeArgs, resolve
from ochat_ray.serve.engines.base import RequestRefusedError, Sampling

PROMPTS = [[0, 40, 41, 42], [0, *list(range(60, 90))], [0, 7]]


@pytest.fixture(scope="module")
def settings(model_directory):
    args = ServeArgs(
        model=str(model_directory),
        context_length=512,
        max_ongoing=4,
        max_batch_tokens=32,
        dtype="float32",
    )
    return resolve(args).engine


@pytest.fixture(scope="module")
def engine(settings):
    from ochat_ray.serve.engines.transformers import TransformersEngine

    engine = TransformersEngine(settings)
    yield engine
    engine.close()


async def answer(engine, prompt, name="r", **sampling):
    deltas = [d async for d in engine.submit(name, prompt, Sampling(**sampling))]
    return [i for delta in deltas for i in delta.token_ids], deltas[-1].finish_reason


def answers(engine, prompts, **sampling):
    async def gather():
        return await asyncio.gather(
            *[answer(engine, p, f"r{i}", **sampling) for i, p in enumerate(prompts)]
        )

    return asyncio.run(gather())


def test_leaving_frees_the_slot(engine):
    async def leave():
        stream = engine.submit("gone", PROMPTS[0], Sampling(max_tokens=500))
        await anext(stream)
        assert engine.capacity().running == 1
        await stream.aclose()
        for _ in range(100):
            if engine.capacity().running == 0:
                return
            await asyncio.sleep(0.02)
        raise AssertionError("still running")

    asyncio.run(leave())
    assert engine._queues == {}
    assert engine._manager.output_router.result_handlers == {}


def test_a_cache_without_room_for_one_context_is_refused(model_directory):
    from ochat_ray.serve.engines.transformers import TransformersEngine

    args = ServeArgs(model=str(model_directory), kv_cache_gib=0.0001)
    with pytest.raises(UserError, match="lower context_length"):
        TransformersEngine(resolve(args).engine)


def test_log_probabilities_are_the_models_own(engine, model_directory):
    import torch
    from transformers import LlamaForCausalLM

    async def collect():
        rules = Sampling(
            max_tokens=6, temperature=0, top_logprobs=2, presence_penalty=2.0, logit_bias=((9, 5),)
        )
        return [d async for d in engine.submit("r", PROMPTS[1], rules)]

    deltas = asyncio.run(collect())
    ids = [i for delta in deltas for i in delta.token_ids]
    entries = [entry for delta in deltas for entry in delta.logprobs]
    assert [entry.token_id for entry in entries] == ids
    model = LlamaForCausalLM.from_pretrained(model_directory, dtype=torch.float32)
    logits = model(torch.tensor([PROMPTS[1] + ids])).logits[0, len(PROMPTS[1]) - 1 : -1]
    for logs, entry in zip(logits.log_softmax(-1), entries, strict=True):
        assert entry.logprob == pytest.approx(logs[entry.token_id].item(), abs=1e-4)
        values, likeliest = logs.topk(2)
        assert [i for i, _ in entry.top] == likeliest.tolist()
        assert [p for _, p in entry.top] == pytest.approx(values.tolist(), abs=1e-4)


def test_an_answer_matches_its_schema_and_then_stops(engine, tokenizer):
    import json

    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}, "n": {"enum": [1, 22]}},
        "required": ["ok", "n"],
        "additionalProperties": False,
    }
    end = tokenizer.convert_tokens_to_ids("<|end_of_turn|>")
    got = answers(
        engine, PROMPTS, max_tokens=400, json_schema=json.dumps(schema), seed=1, stop_ids=(end,)
    )
    for ids, reason in got:
        assert reason == "stop"
        value = json.loads(tokenizer.decode(ids[:-1]))
        assert set(value) == {"ok", "n"}
        assert value["n"] in (1, 22)


@pytest.mark.parametrize(
    ("schema", "stop_ids"), [('{"type": "number?"}', (1,)), ('{"type": "integer"}', ())]
)
def test_a_schema_that_cannot_be_followed_is_refused(engine, schema, stop_ids):
    with pytest.raises(RequestRefusedError, match="json_schema"):
        answers(engine, PROMPTS[:1], max_tokens=4, json_schema=schema, stop_ids=stop_ids)
    assert engine._queues == {}


def check_fails_alone(engine, bad, good, expected):
    """Of two requests in a batch the bad one fails with "no luck", and the good one is answered."""
    from ochat_ray.serve.engines.base import EngineError

    async def both():
        return await asyncio.gather(
            answer(engine, PROMPTS[0], "bad", max_tokens=16, **bad),
            answer(engine, PROMPTS[1], "good", max_tokens=16, **good),
            return_exceptions=True,
        )

    failed, answered = asyncio.run(both())
    assert isinstance(failed, EngineError)
    assert "no luck" in str(failed)
    assert answered == expected
    engine.check_health()
    assert engine._queues == engine._samplers == {}


def test_a_sampler_that_fails_ends_its_own_request_alone(engine, monkeypatch):
    from ochat_ray.serve.engines import batch_sampler

    def fail(scores, sampling, *, seed, position):
        if seed == 13 and position == len(PROMPTS[0]) + 2:
            raise MemoryError("no luck")
        return choose(scores, sampling, seed=seed, position=position)

    choose = batch_sampler.choose
    alone = answers(engine, PROMPTS[1:2], max_tokens=16, seed=5)
    monkeypatch.setattr(batch_sampler, "choose", fail)

    check_fails_alone(engine, {"seed": 13}, {"seed": 5}, alone[0])


def test_requests_that_are_taken_out_of_a_full_cache_go_on_as_they_were(settings):
    """Three requests of 480 tokens in a cache that holds six pages of 128."""
    import dataclasses

    from ochat_ray.serve.engines.transformers import TransformersEngine

    prompts = [[0, *range(40 + i, 240 + i)] for i in range(3)]
    rules = {
        "max_tokens": 280,
        "seed": 3,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.1,
        "repetition_penalty": 1.2,
    }
    # A page of this model is 64 KiB.
    small = TransformersEngine(dataclasses.replace(settings, kv_cache_gib=6.5 * 65536 / 2**30))
    try:
        resets = []
        manager = small._manager
        answers(small, prompts[:1], max_tokens=1)
        offloading = manager.batch_processor.offloading_manager
        offload = offloading.offload_requests
        offloading.offload_requests = lambda: resets.append(offload()) or resets[-1]
        together = answers(small, prompts, **rules)
        assert any(resets)
        assert together == [answers(small, [p], **rules)[0] for p in prompts]
    finally:
        small.close()


def test_a_shared_beginning_is_read_once(engine):
    """What is not in the cache of a prompt is read in one step, beside others' single tokens."""
    beginning = [0, *list(range(30, 290))]
    prompts = [[*beginning, 40 + i] for i in range(3)]
    first = answers(engine, prompts[:1], max_tokens=8, temperature=0)
    together = answers(engine, prompts, max_tokens=8, temperature=0)
    assert together[:1] == first
    assert together == [
        answers(engine, [prompt], max_tokens=8, temperature=0)[0] for prompt in prompts
    ]


def test_of_outputs_that_come_together_the_newest_counts(engine):
    """The generating thread may be steps ahead of the event loop."""
    import time

    async def slow_reader():
        stream = engine.submit("slow", PROMPTS[0], Sampling(max_tokens=40, temperature=0))
        ids = []
        async for delta in stream:
            ids += delta.token_ids
            time.sleep(0.02)
        return ids

    wanted = answers(engine, PROMPTS[:1], max_tokens=40, temperature=0)[0][0]
    for _ in range(5):
        assert asyncio.run(asyncio.wait_for(slow_reader(), 30)) == wanted


def test_a_request_that_another_task_cancels_ends(engine):
    async def cancel():
        stream = engine.submit("gone", PROMPTS[0], Sampling(max_tokens=500))
        await anext(stream)
        engine.cancel("gone")
        return [delta.finish_reason async for delta in stream]

    assert not any(asyncio.run(asyncio.wait_for(cancel(), 30)))


def test_a_prompt_whose_scoring_fails_ends_alone(engine, monkeypatch):
    from ochat_ray.serve.engines.prompt_scores import PromptScores

    def fail(self, logits, first):
        raise MemoryError("no luck")

    alone = answers(engine, PROMPTS[1:2], max_tokens=16, temperature=0)
    monkeypatch.setattr(PromptScores, "fill", fail)

    greedy = {"temperature": 0}
    check_fails_alone(engine, greedy | {"prompt_logprobs": 1}, greedy, alone[0])


def test_prompts_that_are_taken_out_of_a_full_cache_are_scored(settings, model_directory):
    """Each with an answer that fills the context, in a cache that holds six pages of 128."""
    import dataclasses

    import torch
    from transformers import LlamaForCausalLM

    from ochat_ray.serve.engines.transformers import TransformersEngine

    prompts = [[0, *range(40 + i, 240 + i)] for i in range(3)]
    model = LlamaForCausalLM.from_pretrained(model_directory, dtype=torch.float32)
    small = TransformersEngine(dataclasses.replace(settings, kv_cache_gib=6.5 * 65536 / 2**30))

    async def first(prompt, name):
        rules = Sampling(max_tokens=280, temperature=0, prompt_logprobs=1)
        deltas = [delta async for delta in small.submit(name, prompt, rules)]
        assert sum(len(delta.token_ids) for delta in deltas) == 280
        return deltas[0].prompt_logprobs.logprobs

    async def gather():
        return await asyncio.gather(*[first(p, f"r{i}") for i, p in enumerate(prompts)])

    try:
        for prompt, found in zip(prompts, asyncio.run(gather()), strict=True):
            with torch.no_grad():
                logs = model(torch.tensor([prompt])).logits[0, :-1].log_softmax(-1)
            wanted = logs.gather(1, torch.tensor(prompt[1:])[:, None])[:, 0]
            assert found.tolist() == pytest.approx(wanted.tolist(), abs=1e-4)
    finally:
        small.close()
