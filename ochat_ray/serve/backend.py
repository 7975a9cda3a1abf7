"""Interface between the HTTP ingress and the model replicas."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Protocol

from ochat_ray.serve.engines.base import Capacity, Delta, Sampling


@dataclass(frozen=True, kw_only=True, slots=True)
class Accepted:
    """Notice that a replica accepted the request; deltas follow. Repeated if another takes over."""

    replica: str


class Backend(Protocol):
    """Source of answers: replicas behind a Serve handle, or an engine in this process."""

    def generate(
        self, request_id: str, prompt_ids: list[int], sampling: Sampling, *, session: str
    ) -> AsyncGenerator[Accepted | Delta, None]:
        """Generate one answer; closing the generator cancels it.

        Requests of one `session` go to one replica if the backend routes by session.

        Raises:
            EngineError: The engine failed.
        """
        ...

    async def ready(self) -> bool:
        """Return whether a request would be answered now."""
        ...

    async def loads(self) -> Mapping[str, Capacity]:
        """Return the engines' load by replica."""
        ...
