"""Distribute calls over the nodes of a Ray cluster; one process writes the records."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ochat_ray import ray_session
from ochat_ray.evaluate.client import CallFailedError, Client
from ochat_ray.evaluate.replies import Reply

ATTEMPTS = 8
"""Maximum attempts of a call whose worker process is lost."""


def connect(base_url: str, api_key: str, **options: Any) -> Client | SpreadClient:
    """Return a client with one worker per node; a local one if the URL is a loopback address.

    Takes the arguments of `Client`.
    """
    host = urlsplit(base_url).hostname or ""
    kind = Client if host == "localhost" or _is_loopback(host) else SpreadClient
    return kind(base_url, api_key, **options)


class SpreadClient:
    """One `Client` per node, each with its share of `max_concurrency`.

    Calls in flight on a lost node are retried on another.
    """

    def __init__(
        self, base_url: str, api_key: str, *, max_concurrency: int = 32, **options: Any
    ) -> None:
        nodes = _nodes()
        share = -(-max_concurrency // len(nodes))
        self._api_key = api_key
        self._places = asyncio.Semaphore(max_concurrency)
        self._options = {"base_url": base_url, "max_concurrency": share, **options}
        self._under_way = {self._new(node): 0 for node in nodes}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for caller in self._under_way:
            ray.kill(caller)

    async def chat(self, body: Mapping[str, Any]) -> Reply:
        """Return the answer to a chat completion request; see `Client.chat`."""
        reply: Reply = await self._ask("chat", dict(body))
        return reply

    async def describe(self, model: str) -> dict[str, Any]:
        """Return the entry of a model in the endpoint's list of models; see `Client.describe`."""
        found: dict[str, Any] = await self._ask("describe", model)
        return found

    def _new(self, node: str) -> Any:
        there = NodeAffinitySchedulingStrategy(node, soft=False)
        return (
            ray.remote(_Caller)
            .options(
                num_cpus=0,
                max_concurrency=self._options["max_concurrency"],
                scheduling_strategy=there,
            )
            .remote(**self._options)
        )

    async def _ask(self, method: str, argument: Any) -> Any:
        async with self._places:
            for _ in range(ATTEMPTS):
                caller = min(self._under_way, key=self._under_way.__getitem__)
                self._under_way[caller] += 1
                try:
                    return await getattr(caller, method).remote(self._api_key, argument)
                except RayTaskError as error:
                    raise error.cause from None
                except RayActorError:
                    self._under_way.pop(caller, None)
                    if not self._under_way:
                        self._under_way[self._new(_own_node())] = 0
                finally:
                    if caller in self._under_way:
                        self._under_way[caller] -= 1
            raise CallFailedError(f"the process that asked was lost {ATTEMPTS} times")


class _Caller:
    # The key comes with each call, since the head node stores an actor's constructor arguments.
    def __init__(self, **options: Any) -> None:
        self._options = options
        self._client: Client | None = None

    async def chat(self, api_key: str, body: Mapping[str, Any]) -> Reply:
        return await self._opened(api_key).chat(body)

    async def describe(self, api_key: str, model: str) -> dict[str, Any]:
        return await self._opened(api_key).describe(model)

    def _opened(self, api_key: str) -> Client:
        if self._client is None:
            self._client = Client(api_key=api_key, **self._options)
        return self._client


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _nodes() -> list[str]:
    ray_session.join_or_start()
    return [node["NodeID"] for node in ray.nodes() if node["Alive"]]


def _own_node() -> str:
    return str(ray.get_runtime_context().get_node_id())
