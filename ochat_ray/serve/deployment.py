"""Ray Serve deployments of the model and the ingress; independent of protocol and engine."""

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
from ray.serve.context import _get_global_client  # Ray 2.60: no public one has the address
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from ochat_ray.cluster.resources import head_node, room_for
from ochat_ray.errors import UserError
from ochat_ray.models.model_directory import local_directory
from ochat_ray.serve.adapters import AdapterCatalog
from ochat_ray.serve.backend import Accepted
from ochat_ray.serve.coalesce import coalesce, pause_s
from ochat_ray.serve.engines.base import Delta, Engine, Sampling
from ochat_ray.serve.handle_backend import MODEL, HandleBackend, Load
from ochat_ray.serve.settings import EngineSettings, IngressSettings, Settings

INGRESS = "Ingress"

INGRESS_ONGOING = 4096
"""Limit above what the model replicas and their queue can hold.

Overload is thus rejected by the queue, with an OpenAI error body, and not by Serve's proxy. A
waiting request costs the ingress little.
"""

DRAIN_S = 60
"""Seconds that a stopping replica has to finish its requests (graceful shutdown)."""


REPLICA_ENVIRONMENT = {
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    # Waking threads costs more than encoding a prompt's few texts one after the other.
    "TOKENIZERS_PARALLELISM": "false",
}
"""Settings of Ray Serve's throughput-optimized mode, for these replicas only.

Serve's object references and two more threads make a token about half as expensive again
(benchmarks/serve_speed.py --ceiling).
"""

LOAD_EVERY_S = 1.0
"""Seconds between load reports of a busy replica, sent on its streams since it takes no other
call."""


class ModelReplica:
    """Deployment of one engine. Serve adds replicas as requests queue up."""

    def __init__(self, settings: EngineSettings) -> None:
        self._engine = open_engine(settings)
        self._streams = 0
        self._said_load = 0.0
        self._name = serve.get_replica_context().replica_id.unique_id

    async def generate(
        self, request_id: str, prompt_ids: list[int], sampling: Sampling
    ) -> AsyncGenerator[Accepted | Delta | Load, None]:
        """Yield the engine's deltas; Serve cancels this when the caller disconnects."""
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
        """Return the current load of the engine."""
        return Load(replica=self._name, capacity=self._engine.capacity())

    async def check_health(self) -> None:
        """Raise if the engine is dead, upon which Serve replaces the replica."""
        self._engine.check_health()

    def __del__(self) -> None:
        # _engine is missing if __init__ failed. Its thread would keep the process alive.
        if hasattr(self, "_engine"):
            self._engine.close()


def open_engine(settings: EngineSettings) -> Engine:
    """Open the engine given by the settings, and load its model."""
    settings = replace(settings, directory=str(local_directory(settings.directory)))
    # Imported here: each engine imports gigabytes of libraries that the others do not need.
    if settings.engine == "vllm":
        from ochat_ray.serve.engines.vllm import VllmEngine

        return VllmEngine(settings)
    if settings.engine == "scripted":
        from ochat_ray.serve.engines.scripted import ScriptedEngine

        return ScriptedEngine(
            vocabulary=settings.vocabulary,
            context_length=settings.context_length,
            # Single bytes in the supported vocabularies; the ids below are special tokens.
            script=range(3, min(259, settings.vocabulary - 1)),
        )
    from ochat_ray.serve.engines.transformers import TransformersEngine

    return TransformersEngine(settings)


class IngressReplica:
    """Deployment of the HTTP ingress. Serve calls `__serve_build_asgi_app__` after `__init__`."""

    def __init__(self, settings: IngressSettings, model: DeploymentHandle, may_sleep: bool) -> None:
        self._settings = settings
        self._backend = HandleBackend(model, may_sleep=may_sleep)
        _enable_info_logs()

    def __serve_build_asgi_app__(self) -> Any:
        from ochat_ray.serve.routes import build_app
        from ochat_ray.serve.served_model import open_served_tokenizer, served_template

        settings = self._settings
        # Adapters are checked against the shapes of the weights.
        directory = local_directory(settings.directory, weights=settings.adapters is not None)
        adapters = None
        if settings.adapters is not None:
            template = served_template(directory, settings.model_type)
            rules = replace(settings.adapters.rules(directory), template=template)
            name = settings.served_model_name
            adapters = AdapterCatalog(settings.adapters.directory, rules, reserved=name)
            adapters.start()
        tokenizer = open_served_tokenizer(directory, settings.model_type)
        return build_app(settings, tokenizer, self._backend, adapters)


def _enable_info_logs() -> None:
    """Let this package's INFO messages reach the replica's output; Ray shows only warnings."""
    logger = logging.getLogger("ochat_ray.serve")
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False


def _check_cluster_capacity(settings: Settings) -> None:
    """Check that the cluster can ever hold the minimum number of replicas.

    Raises:
        UserError: It cannot.
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


def _check_http_address(settings: Settings) -> None:
    """Check that a running Serve listens where the application's settings expect it.

    `serve deploy` ignores other `http_options` than those of the running Serve, and reports success
    (Ray 2.60, issues 56163 and 65699).

    Raises:
        UserError: It listens at another address.
    """
    expected = {"host": settings.http_host, "port": settings.http_port}
    if not ray.is_initialized() or not any(expected.values()):
        return
    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        return
    for name, value in expected.items():
        current = getattr(client.http_config, name)
        if value is not None and value != current:
            raise UserError(
                f"http_{name}={value}: Serve already runs with {name} {current}, which a "
                "deployment cannot change; run `serve shutdown` first, which ends all applications"
            )


def _prefer_head_node() -> dict[str, Any]:
    """Return options that keep a replica on the head node while that exists.

    If another node is lost, only streams of its own model replicas break. serve.yaml places the
    proxy on the head node as well.
    """
    head = head_node() if ray.is_initialized() else None
    if head is None:
        return {}
    return {
        "label_selector": {"ray.io/node-id": head},
        "fallback_strategy": [{"label_selector": {}}],
    }


def build(settings: Settings) -> Application:
    """Build the application: ingress replicas in front of autoscaled model replicas.

    Raises:
        UserError: The cluster can never hold the replicas, or Serve listens at another address.
    """
    _check_http_address(settings)
    _check_cluster_capacity(settings)
    engine = settings.engine
    shared: dict[str, Any] = {
        "graceful_shutdown_timeout_s": DRAIN_S,
        "graceful_shutdown_wait_loop_s": 0.5,
        "max_surge_percent": settings.max_surge_percent,
        # The ingress writes a line per request, with more in it.
        "logging_config": LoggingConfig(enable_access_log=False),
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
            # Half of a replica's capacity: above it every stream gets slower.
            target_ongoing_requests=max(1, engine.max_ongoing / 2),
            # Serve's defaults average over 30 s; many answers are shorter.
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
            **_prefer_head_node(),
        },
        max_ongoing_requests=INGRESS_ONGOING,
        **shared,
    )(serve.ingress()(IngressReplica))
    return ingress.bind(settings.ingress, model.bind(engine), settings.min_replicas == 0)
