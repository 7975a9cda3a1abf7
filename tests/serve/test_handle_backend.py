"""The model replicas as the ingress sees them, with a handle that is scripted."""

import asyncio
import time

import pytest
from ray.serve.exceptions import BackPressureError, ReplicaUnavailableError
from ray.serve.handle import DeploymentResponseGenerator

from ochat_ray.serve import deployment
from ochat_ray.serve.backend import Accepted
from ochat_ray.serve.deployment import HandleBackend
from ochat_ray.serve.engines.base import (
    Delta,
    EngineOverloadedError,
    EngineUnavailableError,
    Sampling,
)

FULL = BackPressureError(num_queued_requests=5, max_queued_requests=5)
DIED = ReplicaUnavailableError("gone")
DELTA = Delta(token_ids=(5,))


class Scripted(DeploymentResponseGenerator):
    """A call's items; an exception among them is raised."""

    def __init__(self, items):
        self._items = iter(items)

    def __aiter__(self):
        return self

    async def __anext__(self):
        item = next(self._items, None)
        if item is None:
            raise StopAsyncIteration
        if isinstance(item, Exception):
            raise item
        return item

    def cancel(self):
        pass


class Handle:
    """Answers each call with the next script."""

    def __init__(self, *scripts):
        self.scripts = list(scripts)

    def options(self, **_options):
        return self

    def remote(self, *_args):
        return Scripted(self.scripts.pop(0))


def generated(handle):
    async def gather():
        backend = HandleBackend(handle, may_sleep=False)
        return [
            item async for item in backend.generate("r", [1], Sampling(max_tokens=5), session="s")
        ]

    return asyncio.run(gather())


@pytest.mark.parametrize(
    ("ready", "error"), [(True, EngineOverloadedError), (False, EngineUnavailableError)]
)
def test_a_full_queue_is_refused_at_once(monkeypatch, ready, error):
    monkeypatch.setattr(deployment, "_running", lambda _may_sleep: ready)
    handle = Handle([FULL], [DELTA])
    with pytest.raises(error):
        generated(handle)
    assert len(handle.scripts) == 1  # not asked again


def test_those_who_ask_at_once_whether_it_is_ready_hear_the_same(monkeypatch):
    asked = []

    def slow(_may_sleep):
        asked.append(None)
        time.sleep(0.05)
        return True

    async def ask():
        backend = HandleBackend(Handle(), may_sleep=False)
        return await asyncio.gather(*[backend.ready() for _ in range(5)])

    monkeypatch.setattr(deployment, "_running", slow)
    assert asyncio.run(ask()) == [True] * 5
    assert len(asked) == 1


def test_an_answer_that_has_not_begun_is_asked_for_again():
    accepted = Accepted(replica="a")
    assert generated(Handle([accepted, DIED], [accepted, DELTA])) == [accepted, accepted, DELTA]


def test_an_answer_that_has_begun_is_not():
    handle = Handle([DELTA, DIED], [DELTA])
    with pytest.raises(EngineUnavailableError):
        generated(handle)
    assert len(handle.scripts) == 1
