"""POST /v1/embeddings: request, response, and the concurrent embedding of its inputs.

Source: OpenAI's API reference for embeddings.
"""

from __future__ import annotations

import asyncio
import base64
import uuid
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import orjson
from fastapi import Request
from fastapi.responses import Response
from pydantic import BaseModel, BeforeValidator, Field

from ochat_ray.serve.backend import Accepted, Backend
from ochat_ray.serve.engines.base import Adapter, EngineError, Sampling
from ochat_ray.serve.generation import await_unless_disconnected
from ochat_ray.serve.limits import Limits
from ochat_ray.serve.metrics import Record
from ochat_ray.serve.protocol.errors import ApiError
from ochat_ray.serve.protocol.fields import Strict, Text
from ochat_ray.serve.protocol.neutral import one_of

MOST_INPUTS = 2048
"""Maximum inputs per request; OpenAI's limit."""

MOST_TOKENS = 300_000
"""Maximum tokens per request, over all inputs; OpenAI's limit."""

MOST_VALUES = 2**22
"""Maximum numbers in a response."""

_Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, fail_fast=True)]
_Input = Annotated[Text, Field(min_length=1)]
_Inputs = Annotated[
    list[_Input | _Ids], Field(min_length=1, max_length=MOST_INPUTS, fail_fast=True)
]


def _few(value: Any) -> Any:
    """Reject empty inputs and too many of them, before all branches of the union report errors."""
    if value in ("", []):
        raise ValueError("is empty")
    if isinstance(value, list) and not isinstance(value[0], int):
        if len(value) > MOST_INPUTS:
            raise ValueError(f"has {len(value)} inputs, of at most {MOST_INPUTS}")
        if any(item in ("", []) for item in value):
            raise ValueError("one of the inputs is empty")
    return value


class EmbeddingRequest(Strict):
    """Body of POST /v1/embeddings: texts or token ids, without a template."""

    NEUTRAL = {"add_special_tokens": one_of(True), "normalize": one_of(True)}  # noqa: RUF012

    model: Text
    input: Annotated[_Input | _Ids | _Inputs, BeforeValidator(_few)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, description="the model's; no other number")
    user: Text | None = None

    @property
    def inputs(self) -> list[str | list[int]]:
        """Inputs, each as text or as ids."""
        if isinstance(self.input, str) or all(isinstance(item, int) for item in self.input):
            return [self.input]  # type: ignore[list-item]
        return list(self.input)  # type: ignore[arg-type]

    def check(self, size: int | None) -> None:
        """Reject what the server does not do; `size` is that of its embeddings, if it has any.

        Raises:
            ApiError: 404 without embeddings, 400 for other dimensions or too many values.
        """
        if size is None:
            raise ApiError(
                404,
                "this server was started without embeddings; start it with embeddings=true",
                code="embeddings_not_enabled",
            )
        if self.dimensions not in (None, size):
            raise ApiError(
                400,
                f"dimensions: is {self.dimensions}, and this model's embeddings have {size}",
                code="unsupported_parameter",
                param="dimensions",
            )
        if len(self.inputs) * size > MOST_VALUES:
            raise ApiError(
                400,
                f"input: {len(self.inputs)} inputs of {size} numbers each are above the limit of "
                f"{MOST_VALUES} numbers",
                code="too_many_inputs",
                param="input",
            )


class EmbeddingItem(BaseModel):
    """Embedding of one input: numbers, or their little-endian float32 bytes in base64."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    """Tokens of all inputs."""

    prompt_tokens: int
    total_tokens: int


class Embeddings(BaseModel):
    """Response of /v1/embeddings."""

    object: Literal["list"] = "list"
    data: list[EmbeddingItem]
    model: str
    usage: EmbeddingUsage


def check_lengths(prompts: Sequence[Sequence[int]], context_length: int) -> None:
    """Reject inputs that do not fit, each with one token less than the context, or all together.

    Raises:
        ApiError: 400 with the numbers.
    """
    most = context_length - 1
    for index, ids in enumerate(prompts):
        if len(ids) > most:
            raise ApiError(
                400,
                f"This model's maximum context length is {most} tokens. However, input {index} "
                f"resulted in {len(ids)} tokens. Please reduce the length of the input.",
                code="context_length_exceeded",
                param="input",
            )
    if (total := sum(map(len, prompts))) > MOST_TOKENS:
        raise ApiError(
            400,
            f"input: {total} tokens are above the limit of {MOST_TOKENS} per request",
            code="too_many_tokens",
            param="input",
        )


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """Validated request, ready for the model."""

    backend: Backend
    limits: Limits
    model: str
    adapter: Adapter | None
    prompts: Sequence[list[int]]
    at_once: int
    session: str
    timeout_s: float

    async def respond(self, request: Request, *, as_base64: bool) -> Response:
        """Return the response.

        Raises:
            ApiError, EngineError, TimeoutError: An input could not be embedded.
        """
        record: Record = request.state.record
        record.choices = len(self.prompts)
        record.prompt_tokens = sum(map(len, self.prompts))
        self.limits.take_tokens(record.key, record.prompt_tokens)
        found = await await_unless_disconnected(request, self._all(record))
        # On a thread: writing millions of numbers would delay the streams of others.
        content = await asyncio.to_thread(self._written, found, record.prompt_tokens, as_base64)
        return Response(content, media_type="application/json")

    async def _all(self, record: Record) -> list[np.ndarray]:
        """Return the embeddings in order; at most `at_once` are computed concurrently."""
        found: list[np.ndarray] = [np.empty(0)] * len(self.prompts)
        id, numbered = f"embd-{uuid.uuid4().hex}", iter(enumerate(self.prompts))

        async def work() -> None:
            for index, ids in numbered:
                found[index] = await self._one(f"{id}-{index}", ids, record)

        workers = [asyncio.create_task(work()) for _ in range(self.at_once)]
        try:
            async with asyncio.timeout(self.timeout_s):
                await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        return found

    async def _one(self, id: str, ids: list[int], record: Record) -> np.ndarray:
        sampling = Sampling(max_tokens=1, temperature=0, adapter=self.adapter, embed=True)
        found = None
        items = self.backend.generate(id, ids, sampling, session=self.session)
        async with aclosing(items):
            async for item in items:
                if isinstance(item, Accepted):
                    record.replica = item.replica
                    record.queue_s = record.queue_s or record.elapsed_s()
                elif item.embedding is not None:
                    found = item.embedding
        if found is None:
            raise EngineError("the engine returned no embedding")
        return found / max(float(np.linalg.norm(found)), 1e-12)

    def _written(self, found: Sequence[np.ndarray], tokens: int, as_base64: bool) -> bytes:
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": base64.b64encode(row.astype("<f4").tobytes()).decode()
                if as_base64
                # One at a time: orjson lets no other thread run.
                else orjson.Fragment(
                    orjson.dumps(row.astype(np.float32), option=orjson.OPT_SERIALIZE_NUMPY)
                ),
            }
            for index, row in enumerate(found)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return orjson.dumps({"object": "list", "data": data, "model": self.model, "usage": usage})
