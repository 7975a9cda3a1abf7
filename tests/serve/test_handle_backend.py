"""The model replicas as the ingress sees them, with a handle that is scripted."""

import asyncio
import time

import grpc
import pytest
from grpc.aio import Metadata
from ray.serve.exceptions import BackPressureError, ReplicaUnavailableError
from ray.serve.handle import DeploymentResponseGenerator

from ochat_ray.serve import handle_backend
from ochat_ray.serve.backend import Accepted
from ochat_ray.serve.engines.base import (
    Delta,
    EngineOverloadedError,
    EngineUnavailableError,
    RequestRefusedError,
    Sampling,
)
from ochat_ray.serve.handle_backend import REJECTED_FOR_S, HandleBackend, PoisonedRequests

FULL = BackPressureError(num_queued_requests=5, max_queued_requests=5)
DIED = ReplicaUnavailableError("gone")
CUT = grpc.aio.AioRpcError(grpc.StatusCode.UNKNOWN, Metadata(), Metadata(), "stream removed")
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
        self.chosen = {}

    def options(self, **options):
        self.chosen |= options
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
    monkeypatch.setattr(handle_backend, "_running", lambda _may_sleep: ready)
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

    monkeypatch.setattr(handle_backend, "_running", slow)
    assert asyncio.run(ask()) == [True] * 5
    assert len(asked) == 1


@pytest.mark.parametrize("lost", [DIED, CUT], ids=["died", "cut"])
def test_an_answer_that_has_not_begun_is_asked_for_again(lost):
    accepted = Accepted(replica="a")
    assert generated(Handle([accepted, lost], [accepted, DELTA])) == [accepted, accepted, DELTA]


@pytest.mark.parametrize("lost", [DIED, CUT], ids=["died", "cut"])
def test_an_answer_that_has_begun_is_not(lost):
    handle = Handle([DELTA, lost], [DELTA])
    with pytest.raises(EngineUnavailableError):
        generated(handle)
    assert len(handle.scripts) == 1


def test_what_ends_a_replica_twice_is_refused_from_then_on():
    accepted = Accepted(replica="a")
    handle = Handle([accepted, DIED], [accepted, DIED], [accepted, DELTA], [accepted, DELTA])
    backend = HandleBackend(handle, may_sleep=False)

    async def ask(prompt_ids):
        asked = backend.generate("r", prompt_ids, Sampling(max_tokens=5), session="s")
        return [item async for item in asked]

    for _ in range(3):
        with pytest.raises(RequestRefusedError, match="2 model replicas died"):
            asyncio.run(ask([1]))
    assert len(handle.scripts) == 2
    assert asyncio.run(ask([2])) == [accepted, DELTA]


def test_calls_go_over_grpc_as_plain_pickles():
    handle = Handle([DELTA])
    generated(handle)
    assert handle.chosen["_by_reference"] is False
    assert handle.chosen["request_serialization"] == "pickle"
    assert handle.chosen["response_serialization"] == "pickle"


def test_a_request_that_no_replica_took_is_not_what_ends_them():
    accepted = Accepted(replica="a")
    assert generated(Handle([DIED], [DIED], [DIED], [accepted, DELTA])) == [accepted, DELTA]


def test_a_refused_request_is_let_in_again_after_a_while():
    now = [0.0]
    poisoned = PoisonedRequests(lambda: now[0])
    poisoned.add([1], Sampling(max_tokens=5, seed=3))
    with pytest.raises(RequestRefusedError):
        poisoned.check([1], Sampling(max_tokens=5, seed=4))
    now[0] = REJECTED_FOR_S
    poisoned.check([1], Sampling(max_tokens=5, seed=3))
