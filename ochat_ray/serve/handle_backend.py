"""Client of the model replicas behind a Ray Serve handle, with retries."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace

import grpc
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
"""Retries of an answer that no replica accepted."""

MAX_DEATHS = 2
"""Replicas that may die with a request before its first token. The request may be the cause, so it
is retried once and then rejected by its digest."""

REJECTED_FOR_S = 600.0
MAX_REJECTED = 1024
"""Seconds for which, and number of requests for which, such digests are kept."""

READY_FOR_S = 1.0
"""Seconds for which the Serve controller's replica status is cached."""

LOAD_LASTS_S = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """Load report of a replica's engine, sent between the items of a stream."""

    replica: str
    capacity: Capacity


class PoisonedRequests:
    """Digests of requests with which replicas died, kept for `REJECTED_FOR_S` seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._refused: OrderedDict[str, float] = OrderedDict()

    def add(self, prompt_ids: list[int], sampling: Sampling) -> None:
        """Reject this request from now on."""
        digest = _request_digest(prompt_ids, sampling)
        self._refused[digest] = self._clock() + REJECTED_FOR_S
        self._refused.move_to_end(digest)
        while len(self._refused) > MAX_REJECTED:
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
            f"{MAX_DEATHS} model replicas died while they answered this very request; it is "
            f"rejected for {REJECTED_FOR_S / 60:.0f} minutes"
        )


def _request_digest(prompt_ids: list[int], sampling: Sampling) -> str:
    # The seed, which differs between the choices of a request, does not matter.
    return hashlib.sha256(repr((prompt_ids, replace(sampling, seed=None))).encode()).hexdigest()


class HandleBackend:
    """Client of the model replicas for the ingress."""

    def __init__(self, handle: DeploymentHandle, *, may_sleep: bool) -> None:
        self._handle = handle
        # Over gRPC, at half the CPU time of Ray's objects. The process that binds a handle decides
        # this otherwise, and `REPLICA_ENVIRONMENT` is not that process's.
        self._generate = handle.options(
            method_name="generate",
            stream=True,
            _by_reference=False,
            request_serialization="pickle",
            response_serialization="pickle",
        )
        self._may_sleep = may_sleep
        self._ready, self._asked = False, -READY_FOR_S
        self._asking = asyncio.Lock()
        self._loads: dict[str, tuple[float, Capacity]] = {}
        self._poisoned = PoisonedRequests()

    async def generate(
        self, request_id: str, prompt_ids: list[int], sampling: Sampling, *, session: str
    ) -> AsyncGenerator[Accepted | Delta, None]:
        """Yield deltas from one replica; closing the generator cancels the request there.

        An answer that has not begun when its replica dies is retried.

        Raises:
            EngineOverloadedError: The queue is full.
            EngineUnavailableError: The replica died, or there is none and the queue is full.
            RequestRefusedError: Replicas died with this request.
            EngineError: The engine failed.
        """
        self._poisoned.check(prompt_ids, sampling)
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
                # A retry would only join the same queue; rejections must be immediate.
                kind = EngineOverloadedError if await self.ready() else EngineUnavailableError
                raise kind(str(error)) from error
            except EngineUnavailableError:
                deaths += accepted
                if deaths == MAX_DEATHS and not begun:
                    self._poisoned.add(prompt_ids, sampling)
                    self._poisoned.check(prompt_ids, sampling)
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
        except grpc.aio.AioRpcError as error:
            # Serve itself translates only UNAVAILABLE.
            raise EngineUnavailableError(f"{error.code().name}: {error.details()}") from error
        except EngineError as error:
            # Ray may wrap it in its own exception type, whose text is the replica's traceback.
            raise getattr(error, "cause", error) from None
        except (GeneratorExit, asyncio.CancelledError):
            # Only here: cancelling a failed response raises its error again.
            response.cancel()
            raise

    async def ready(self) -> bool:
        """Return whether a model replica runs, or the deployment is idle at zero replicas."""
        loop = asyncio.get_running_loop()
        async with self._asking:  # concurrent callers share one status query
            if loop.time() - self._asked >= READY_FOR_S:
                self._ready = await asyncio.to_thread(_running, self._may_sleep)
                self._asked = loop.time()
        return self._ready

    async def loads(self) -> dict[str, Capacity]:
        """Return the load of every replica: its current report, or the latest one if it is full."""
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
    # Serve's states are strings, from an enum that it does not export.
    if any(state == "RUNNING" and count > 0 for state, count in states.items()):
        return True
    return may_sleep and status.status == "RUNNING"
