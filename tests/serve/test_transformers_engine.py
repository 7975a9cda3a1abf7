"""What only the transformers engine has; the rest is in test_engine_contract.py."""

from __future__ import annotations

import asyncio

import pytest

from ochat_ray.errors import UserError
from ochat_ray.serve.args import ServeArgs, resolve
from ochat_ray.serve.engines.base import Sampling


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


def test_leaving_frees_the_slot(engine):
    async def leave():
        stream = engine.submit("gone", [0, 40, 41, 42], Sampling(max_tokens=500))
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
