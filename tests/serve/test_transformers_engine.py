"""The engine with a tiny model, against `model.generate`, and what used to kill its loop."""

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


def test_greedy_answers_are_those_of_generate(engine, model_directory):
    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(model_directory, dtype=torch.float32)
    wanted = []
    for prompt in PROMPTS:
        out = model.generate(
            torch.tensor([prompt]), max_new_tokens=24, do_sample=False, eos_token_id=-1
        )
        wanted.append(out[0, len(prompt) :].tolist())
    assert len({tuple(ids) for ids in wanted}) == len(PROMPTS)
    got = answers(engine, PROMPTS, max_tokens=24, temperature=0)
    assert got == [(ids, "length") for ids in wanted]
    assert answers(engine, PROMPTS[:1], max_tokens=24, temperature=0) == got[:1]


def test_a_stop_id_ends_the_answer_and_is_its_last_token(engine):
    ids, _ = answers(engine, PROMPTS[:1], max_tokens=8, temperature=0)[0]
    stop = ids[3]
    wanted = ids[: ids.index(stop) + 1]
    got = answers(engine, PROMPTS[:1], max_tokens=8, temperature=0, stop_ids=(stop,))
    assert got == [(wanted, "stop")]


def test_a_seed_repeats_an_answer_in_any_company(engine):
    alone = answers(engine, PROMPTS[:1], max_tokens=16, seed=7)
    assert answers(engine, PROMPTS, max_tokens=16, seed=7)[:1] == alone
    assert answers(engine, PROMPTS[:1], max_tokens=16, seed=8) != alone
    assert answers(engine, PROMPTS[:1], max_tokens=16) != answers(
        engine, PROMPTS[:1], max_tokens=16
    )


def test_more_requests_than_slots_all_end(engine):
    got = answers(engine, PROMPTS * 4, max_tokens=4, temperature=0)
    assert got == got[:3] * 4


@pytest.mark.parametrize(
    ("prompt", "limit"), [([], 1), ([301], 1), ([-1], 1), ([0] * 512, 1), ([0], 512), ([0], 0)]
)
def test_what_would_end_the_loop_is_refused_and_it_goes_on(engine, prompt, limit):
    with pytest.raises(RequestRefusedError):
        answers(engine, [prompt], max_tokens=limit)
    engine.check_health()
    assert len(answers(engine, PROMPTS[:1], max_tokens=2)[0][0]) == 2


def test_a_whole_context_fits(engine):
    ids, reason = answers(engine, [[0] * 500], max_tokens=12)[0]
    assert (len(ids), reason) == (12, "length")


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


def test_a_dead_loop_fails_health_and_the_request_in_flight(settings):
    from ochat_ray.serve.engines.base import EngineError
    from ochat_ray.serve.engines.transformers import TransformersEngine

    engine = TransformersEngine(settings)

    async def die():
        stream = engine.submit("r", PROMPTS[0], Sampling(max_tokens=500))
        await anext(stream)
        engine.close()
        async for _ in stream:
            pass

    with pytest.raises(EngineError):
        asyncio.run(die())
    with pytest.raises(EngineError):
        engine.check_health()


def test_a_cache_without_room_for_one_context_is_refused(model_directory):
    from ochat_ray.serve.engines.transformers import TransformersEngine

    args = ServeArgs(model=str(model_directory), kv_cache_gib=0.0001)
    with pytest.raises(UserError, match="lower context_length"):
        TransformersEngine(resolve(args).engine)
