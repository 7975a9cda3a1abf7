"""The model replicas behind a Ray Serve handle, as the ingress sees them."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace

from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
)
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from ochat_ray.serve.backend import Accepted
from ochat_ray.serve.engines.base import (
    Capacity,
    Delta,
    EngineError,
    EngineOverloadedError,
    EngineUnavailableError,
    RequestRefusedError,
    Sampling,
)

MODEL = "Model"
"""Name of the deployment of model replicas."""

RETRIES = 3
"""Retries of an answer that has not begun where no replica took it."""

MOST_DEATHS = 2
"""Replicas that may die with a request before its first token. It may be what kills them, so it is
asked again once, and refused by its digest after that."""

REFUSED_FOR_S = 600.0
REFUSED_REQUESTS = 1024
"""Seconds for which, and most requests for which, such a digest is kept."""

READY_FOR_S = 1.0
"""How long an answer of Serve's controller about the replicas is believed."""

LOAD_LASTS_S = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """What a replica's engine holds, in between the items of a stream."""

    replica: str
    capacity: Capacity


class PoisonedRequests:
    """Digests of the requests with which replicas died, for `REFUSED_FOR_S` seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._refused: OrderedDict[str, float] = OrderedDict()

    def add(self, prompt_ids: list[int], sampling: Sampling) -> None:
        """Refuse this request from now on."""
        digest = _request_digest(prompt_ids, sampling)
        self._refused[digest] = self._clock() + REFUSED_FOR_S
        self._refused.move_to_end(digest)
        while len(self._refused) > REFUSED_REQUESTS:
            self._refused.popitem(last=False)

    def check(self, prompt_ids: list[int], sampling: Sampling) -> None:
        """Raise RequestRefusedError if replicas died with this request."""
        if not self._refused:
            return
        digest = _request_digest(prompt_ids, sampling)
        until = self._refused.get(digest)
        if until is None:
            return
        if until <= self._clock():
            del self._refused[digest]
            return
        raise RequestRefusedError(
            f"{MOST_DEATHS} model replicas died while they answered this very request; it is "
            f"refused for {REFUSED_FOR_S / 60:.0f} minutes"
        )


def _request_digest(prompt_ids: list[int], sampling: Sampling) -> str:
    # A seed of a choice is not part of what could end a replica.
    return hashlib.sha256(repr((prompt_ids, replace(sampling, seed=None))).encode()).hexdigest()


class HandleBackend:
    """The model replicas, as the ingress sees them."""

    def __init__(self, handle: DeploymentHandle, *, may_sleep: bool) -> None:
        self._handle = handle
        self._generate = handle.options(method_name="generate", stream=True)
        self._may_sleep = may_sleep
        self._ready, self._asked = False, -READY_FOR_S
        self._asking = asyncio.Lock()
        self._loads: dict[str, tuple[float, Capacity]] = {}
        self._poison = PoisonedRequests()

    async def generate(
        self, request_id: str, prompt_ids: list[int], sampling: Sampling, *, session: str
    ) -> AsyncGenerator[Accepted | Delta, None]:
        """Deltas from one replica; closing the generator cancels the request there.

        An answer that has not begun when its replica dies is asked for again.

        Raises:
            EngineOverloadedError: the queue is full.
            EngineUnavailableError: the replica died, or none is there and the queue is full.
            RequestRefusedError: replicas died with this request.
            EngineError: the engine failed.
        """
        self._poison.check(prompt_ids, sampling)
        begun = False
        deaths = 0
        for attempt in range(RETRIES + 1):
            stream = self._once(f"{request_id}.{attempt}", prompt_ids, sampling, session)
            accepted = False
            try:
                async with aclosing(stream):
                    async for item in stream:
                        accepted = True
                        begun = begun or isinstance(item, Delta)
                        yield item
                return
            except BackPressureError as error:
                # Another attempt would only join the same queue, and a refusal comes at once.
                kind = EngineOverloadedError if await self.ready() else EngineUnavailableError
                raise kind(str(error)) from error
            except EngineUnavailableError:
                deaths += accepted
                if deaths == MOST_DEATHS and not begun:
                    self._poison.add(prompt_ids, sampling)
                    self._poison.check(prompt_ids, sampling)
                if begun or attempt == RETRIES:
                    raise
            await asyncio.sleep(2**attempt / 10)

    async def _once(
        self, request_id: str, prompt_ids: list[int], sampling: Sampling, session: str
    ) -> AsyncGenerator[Accepted | Delta, None]:
        handle = self._generate.options(session_id=session)
        response = handle.remote(request_id, prompt_ids, sampling)
        assert isinstance(response, DeploymentResponseGenerator)
        try:
            async for item in response:
                if isinstance(item, Load):
                    self._loads[item.replica] = (time.monotonic(), item.capacity)
                else:
                    yield item
        except (RayActorError, DeploymentUnavailableError, ReplicaUnavailableError) as error:
            raise EngineUnavailableError(str(error)) from error
        except EngineError as error:
            # Ray may hand it on as a type of its own, whose text is the replica's traceback.
            raise getattr(error, "cause", error) from None
        except (GeneratorExit, asyncio.CancelledError):
            # Only here: cancelling a response that failed raises its error again.
            response.cancel()
            raise

    async def ready(self) -> bool:
        """Whether a model replica runs, as Serve's controller sees it, or sleeps until asked."""
        loop = asyncio.get_running_loop()
        async with self._asking:  # the others wait for the answer to the first
            if loop.time() - self._asked >= READY_FOR_S:
                self._ready = await asyncio.to_thread(_running, self._may_sleep)
                self._asked = loop.time()
        return self._ready

    async def loads(self) -> dict[str, Capacity]:
        """The load of every replica: as it says now, or, where it is full, as it said last."""
        response = self._handle.broadcast("load")
        try:
            found = await response.results_async(timeout_s=1, return_exceptions=True)
        except (TimeoutError, DeploymentUnavailableError):
            found = []
        now = time.monotonic()
        for load in found:
            if isinstance(load, Load):
                self._loads[load.replica] = (now, load.capacity)
        self._loads = {
            name: (said, load)
            for name, (said, load) in self._loads.items()
            if now - said < LOAD_LASTS_S
        }
        return {name: load for name, (_, load) in self._loads.items()}


def _running(may_sleep: bool) -> bool:
    name = serve.get_replica_context().app_name
    status = serve.status().applications[name]
    states = status.deployments[MODEL].replica_states
    # Serve's states are strings, of an enum that it does not export.
    if any(state == "RUNNING" and count > 0 for state, count in states.items()):
        return True
    return may_sleep and status.status == "RUNNING"
