"""The two Ray Serve deployments, and how they are put together. No protocol and no model here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from ray import serve
from ray.exceptions import RayActorError
from ray.serve import Application
from ray.serve.config import AutoscalingConfig
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
)
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from ochat_ray.serve.args import EngineSettings, IngressSettings, Settings
from ochat_ray.serve.engines.base import (
    Delta,
    Engine,
    EngineOverloadedError,
    EngineUnavailableError,
    Sampling,
)

MODEL = "Model"
INGRESS = "Ingress"

INGRESS_ONGOING = 4096
"""Above what the model replicas and their queue can hold: overload is refused by the queue, with
an OpenAI body, and not by Serve's proxy. A request that waits costs the ingress little."""

DRAIN_S = 60
"""How long a replica that is to stop may finish the requests it has."""


class ModelReplica:
    """One engine. Serve starts more of these as requests queue up."""

    def __init__(self, settings: EngineSettings) -> None:
        self._engine = _open_engine(settings)

    async def generate(
        self, request_id: str, prompt_ids: list[int], sampling: Sampling
    ) -> AsyncGenerator[Delta, None]:
        """The engine's deltas; Serve cancels this when the caller goes away."""
        stream = self._engine.submit(request_id, prompt_ids, sampling)
        try:
            async for delta in stream:
                yield delta
        finally:
            await stream.aclose()

    async def running(self) -> int:
        """Requests that the engine holds now."""
        return self._engine.capacity().running

    async def check_health(self) -> None:
        """Serve replaces a replica whose engine is dead."""
        self._engine.check_health()

    def __del__(self) -> None:
        # Not there if __init__ failed. The engine's thread would keep the process from ending.
        if hasattr(self, "_engine"):
            self._engine.close()


def _open_engine(settings: EngineSettings) -> Engine:
    # Imported here: each brings gigabytes of libraries that the others do not need.
    if settings.engine == "vllm":
        from ochat_ray.serve.engines.vllm import VllmEngine

        return VllmEngine(settings)
    if settings.engine == "scripted":
        from ochat_ray.serve.engines.scripted import ScriptedEngine

        return ScriptedEngine(
            vocabulary=settings.vocabulary, context_length=settings.context_length
        )
    from ochat_ray.serve.engines.transformers import TransformersEngine

    return TransformersEngine(settings)


class HandleBackend:
    """The model replicas, as the ingress sees them."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle.options(method_name="generate", stream=True)

    async def generate(
        self, request_id: str, prompt_ids: list[int], sampling: Sampling
    ) -> AsyncGenerator[Delta, None]:
        """Deltas from one replica; closing the generator cancels the request there.

        Raises:
            EngineOverloadedError: the queue is full.
            EngineUnavailableError: the replica died, or none can be had.
            EngineError: the engine failed.
        """
        response = self._handle.remote(request_id, prompt_ids, sampling)
        assert isinstance(response, DeploymentResponseGenerator)
        try:
            async for delta in response:
                yield delta
        except BackPressureError as error:
            raise EngineOverloadedError(str(error)) from error
        except (RayActorError, DeploymentUnavailableError, ReplicaUnavailableError) as error:
            raise EngineUnavailableError(str(error)) from error
        except (GeneratorExit, asyncio.CancelledError):
            # Only here: cancelling a response that failed raises its error again.
            response.cancel()
            raise

    async def ready(self) -> bool:
        """Whether a model replica runs, as Serve's controller sees it."""
        name = serve.get_replica_context().app_name
        status = await asyncio.to_thread(serve.status)
        states = status.applications[name].deployments[MODEL].replica_states
        # Serve's states are strings, of an enum that it does not export.
        return any(state == "RUNNING" and count > 0 for state, count in states.items())


class IngressReplica:
    """The HTTP side. Serve calls `__serve_build_asgi_app__` once the constructor is done."""

    def __init__(self, settings: IngressSettings, model: DeploymentHandle) -> None:
        self._settings = settings
        self._backend = HandleBackend(model)

    def __serve_build_asgi_app__(self) -> Any:
        from ochat_ray.serve.ingress import build_app
        from ochat_ray.tokenizer import load_tokenizer  # imports transformers

        tokenizer = load_tokenizer(self._settings.directory)
        return build_app(self._settings, tokenizer, self._backend)


def build(settings: Settings) -> Application:
    """The application: an ingress replica in front of autoscaled model replicas."""
    engine = settings.engine
    model = serve.deployment(
        name=MODEL,
        ray_actor_options={"num_cpus": engine.num_cpus, "num_gpus": engine.num_gpus},
        max_ongoing_requests=engine.max_ongoing,
        max_queued_requests=settings.max_queued,
        autoscaling_config=AutoscalingConfig(
            min_replicas=settings.min_replicas,
            max_replicas=settings.max_replicas,
            initial_replicas=settings.min_replicas,
            # Half of what a replica can hold: beyond it each stream gets slower.
            target_ongoing_requests=max(1, engine.max_ongoing / 2),
            # Serve's defaults look back over 30 s; an answer is often shorter.
            metrics_interval_s=1,
            look_back_period_s=5,
            upscale_delay_s=3,
            downscale_delay_s=60,
        ),
        health_check_period_s=3,
        health_check_timeout_s=10,
        graceful_shutdown_timeout_s=DRAIN_S,
        graceful_shutdown_wait_loop_s=0.5,
    )(ModelReplica)
    ingress = serve.deployment(
        name=INGRESS,
        num_replicas=1,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=INGRESS_ONGOING,
        graceful_shutdown_timeout_s=DRAIN_S,
        graceful_shutdown_wait_loop_s=0.5,
    )(serve.ingress()(IngressReplica))
    return ingress.bind(settings.ingress, model.bind(engine))
