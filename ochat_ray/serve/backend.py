"""What the ingress asks for answers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Protocol

from ochat_ray.serve.engines.base import Capacity, Delta, Sampling


@dataclass(frozen=True, kw_only=True, slots=True)
class Accepted:
    """A replica took the request; deltas follow. It comes again if another had to take over."""

    replica: str


class Backend(Protocol):
    """Where answers come from: replicas behind a Serve handle, or an engine in this process."""

    def generate(
        self, request_id: str, prompt_ids: list[int], sampling: Sampling, *, session: str
    ) -> AsyncGenerator[Accepted | Delta, None]:
        """One answer; closing the generator cancels it. Raises EngineError.

        Requests of one `session` go to one replica, where the backend routes by that.
        """
        ...

    async def ready(self) -> bool:
        """Whether a request would be answered now."""
        ...

    async def loads(self) -> Mapping[str, Capacity]:
        """The engines' load by replica."""
        ...
