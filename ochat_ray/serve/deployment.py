"""The two Ray Serve deployments, and how they are put together. No protocol and no model here."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import ray
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.handle import DeploymentHandle

from ochat_ray.cluster_resources import head_node, room_for
from ochat_ray.errors import UserError
from ochat_ray.model_directory import local_directory
from ochat_ray.serve.args import EngineSettings, IngressSettings, Settings
from ochat_ray.serve.backend import Accepted
from ochat_ray.serve.coalesce import coalesce, pause_s
from ochat_ray.serve.engines.base import Delta, Engine, Sampling
from ochat_ray.serve.handle_backend import MODEL, HandleBackend, Load

INGRESS = "Ingress"

INGRESS_ONGOING = 4096
"""Above what the model replicas and their queue can hold: overload is refused by the queue, with
an OpenAI body, and not by Serve's proxy. A request that waits costs the ingress little."""

DRAIN_S = 60
"""How long a replica that is to stop may finish the requests it has."""


REPLICA_ENVIRONMENT = {
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
}
"""Three of the settings of Ray Serve's throughput-optimised mode, for our replicas alone. A token
on its way through Serve's object references and two more threads costs about half as much again
(benchmarks/serve_speed.py --ceiling)."""

LOAD_EVERY_S = 1.0
"""How often a busy replica says on its streams what it holds: full, it takes no other call."""


class ModelReplica:
    """One engine. Serve starts more of these as requests queue up."""

    def __init__(self, settings: EngineSettings) -> None:
        self._engine = open_engine(settings)
        self._streams = 0
        self._said_load = 0.0
        self._name = serve.get_replica_context().replica_id.unique_id

    async def generate(
        self, request_id: str, prompt_ids: list[int], sampling: Sampling
    ) -> AsyncGenerator[Accepted | Delta | Load, None]:
        """The engine's deltas; Serve cancels this when the caller goes away."""
        yield Accepted(replica=self._name)
        self._streams += 1
        deltas = self._engine.submit(request_id, prompt_ids, sampling)
        try:
            async with aclosing(coalesce(deltas, lambda: pause_s(self._streams))) as stream:
                async for delta in stream:
                    if time.monotonic() - self._said_load >= LOAD_EVERY_S:
                        self._said_load = time.monotonic()
                        yield await self.load()
                    yield delta
        finally:
            self._streams -= 1

    async def load(self) -> Load:
        """What the engine holds now."""
        return Load(replica=self._name, capacity=self._engine.capacity())

    async def check_health(self) -> None:
        """Serve replaces a replica whose engine is dead."""
        self._engine.check_health()

    def __del__(self) -> None:
        # Not there if __init__ failed. The engine's thread would keep the process from ending.
        if hasattr(self, "_engine"):
            self._engine.close()


def open_engine(settings: EngineSettings) -> Engine:
    """The engine that the settings name, with its model."""
    settings = replace(settings, directory=str(local_directory(settings.directory)))
    # Imported here: each brings gigabytes of libraries that the others do not need.
    if settings.engine == "vllm":
        from ochat_ray.serve.engines.vllm import VllmEngine

        return VllmEngine(settings)
    if settings.engine == "scripted":
        from ochat_ray.serve.engines.scripted import ScriptedEngine

        return ScriptedEngine(
            vocabulary=settings.vocabulary,
            context_length=settings.context_length,
            # Single bytes, in the vocabularies that are served here; the ids below are special.
            script=range(3, min(259, settings.vocabulary - 1)),
        )
    from ochat_ray.serve.engines.transformers import TransformersEngine

    return TransformersEngine(settings)


class IngressReplica:
    """The HTTP side. Serve calls `__serve_build_asgi_app__` once the constructor is done."""

    def __init__(self, settings: IngressSettings, model: DeploymentHandle, may_sleep: bool) -> None:
        self._settings = settings
        self._backend = HandleBackend(model, may_sleep=may_sleep)
        _show_log()

    def __serve_build_asgi_app__(self) -> Any:
        from ochat_ray.serve.ingress import build_app
        from ochat_ray.tokenizer import load_tokenizer  # imports transformers

        tokenizer = load_tokenizer(str(local_directory(self._settings.directory)))
        return build_app(self._settings, tokenizer, self._backend)


def _show_log() -> None:
    """Let this package's INFO lines reach the replica's output; Ray shows warnings alone."""
    logger = logging.getLogger("ochat_ray.serve")
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False


def _check_room(settings: Settings) -> None:
    """That the cluster can ever hold the least number of replicas.

    Raises:
        UserError: it cannot.
    """
    if not ray.is_initialized():
        return
    engine = settings.engine
    room = room_for({"CPU": engine.num_cpus, "GPU": engine.num_gpus})
    if room < (least := max(1, settings.min_replicas)):
        raise UserError(
            f"{least} replica{'s' if least > 1 else ''} of {engine.num_cpus:g} CPU and "
            f"{engine.num_gpus:g} GPU never fit in this cluster, which holds {room}; "
            "give a smaller num_gpus, num_cpus or min_replicas, or add nodes"
        )


def _beside_the_proxy() -> dict[str, Any]:
    """Options that keep a replica on the head as long as it is there.

    A host that is lost then breaks the streams of its own model replicas, and no others. serve.yaml
    has its proxy there, too.
    """
    head = head_node() if ray.is_initialized() else None
    if head is None:
        return {}
    return {
        "label_selector": {"ray.io/node-id": head},
        "fallback_strategy": [{"label_selector": {}}],
    }


def build(settings: Settings) -> Application:
    """The application: ingress replicas in front of autoscaled model replicas.

    Raises:
        UserError: the cluster can never hold them.
    """
    _check_room(settings)
    engine = settings.engine
    shared: dict[str, Any] = {
        "graceful_shutdown_timeout_s": DRAIN_S,
        "graceful_shutdown_wait_loop_s": 0.5,
        "max_surge_percent": settings.max_surge_percent,
    }
    router = RequestRouterConfig()
    if settings.routing == "session":
        router = RequestRouterConfig(
            request_router_class="ray.serve.experimental.consistent_hash_router:ConsistentHashRouter"  # type: ignore[arg-type]
        )
    model = serve.deployment(
        name=MODEL,
        ray_actor_options={
            "num_cpus": engine.num_cpus,
            "num_gpus": engine.num_gpus,
            "runtime_env": {"env_vars": REPLICA_ENVIRONMENT},
        },
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
            upscale_delay_s=settings.upscale_delay_s,
            downscale_delay_s=settings.downscale_delay_s,
        ),
        health_check_period_s=3,
        health_check_timeout_s=10,
        **shared,
        request_router_config=router,
    )(ModelReplica)
    ingress = serve.deployment(
        name=INGRESS,
        num_replicas=settings.ingress_replicas,
        ray_actor_options={
            "num_cpus": 0,
            "runtime_env": {"env_vars": REPLICA_ENVIRONMENT},
            **_beside_the_proxy(),
        },
        max_ongoing_requests=INGRESS_ONGOING,
        **shared,
    )(serve.ingress()(IngressReplica))
    return ingress.bind(settings.ingress, model.bind(engine), settings.min_replicas == 0)
