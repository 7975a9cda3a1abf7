"""Answer one request: collect or stream its answers, within the deadline, and record metrics."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import orjson
from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from ochat_ray.serve.answers import Echo, Event, Piece, TextRules, merge, pieces
from ochat_ray.serve.backend import Accepted, Backend
from ochat_ray.serve.detokenize import Vocabulary
from ochat_ray.serve.engines.base import Delta, Sampling
from ochat_ray.serve.limits import Limits
from ochat_ray.serve.metrics import Record
from ochat_ray.serve.protocol.errors import ApiError, to_api_error
from ochat_ray.serve.protocol.formats import Format
from ochat_ray.serve.protocol.responses import Usage

T = TypeVar("T")

_STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """Prompt token ids and sampling parameters; within a request only their lengths differ.

    `offsets` are those of the ids in the text, if that begins with the prompt and its
    log-probabilities are reported.
    """

    ids: list[int]
    sampling: Sampling
    offsets: Sequence[int] = ()


@dataclass(frozen=True, kw_only=True)
class Generation:
    """Validated request, ready for generation."""

    format: Format
    model: str
    fingerprint: str
    prompts: Sequence[Prompt]
    choices: int
    text: TextRules
    session: str


@dataclass(frozen=True, kw_only=True)
class Responder:
    """Settings and services that all answers of an ingress replica share.

    Attributes:
        at_once: Answers of one request that are generated concurrently.
        keep_alive_s: Seconds of silence in a stream after which a comment is sent.
        timeout_s: Seconds that an answer may take.
        log_text: Whether answers are recorded for the request log.
    """

    backend: Backend
    vocabulary: Vocabulary
    limits: Limits
    at_once: int
    keep_alive_s: float
    timeout_s: float
    log_text: bool

    async def respond(
        self,
        request: Request,
        generation: Generation,
        *,
        stream: bool,
        include_usage: bool,
        usage_in_chunks: bool = False,
    ) -> Response:
        """Return the response; its head is sent once the first token exists.

        Raises:
            ApiError, EngineError, TimeoutError: Raised before anything was sent.
        """
        record: Record = request.state.record
        answering = _Answering(self, generation, record)
        if not stream:
            return await await_unless_disconnected(request, answering.whole())
        first = await await_unless_disconnected(request, answering.first())
        events = answering.events(first, include_usage, usage_in_chunks)
        return _ClosingStream(events, answering.stream)


class _Answering:
    """Answers of one generation in progress."""

    def __init__(self, responder: Responder, generation: Generation, record: Record) -> None:
        self._responder = responder
        self._g = generation
        self._record = record
        id = generation.format.id_prefix + uuid.uuid4().hex
        self._head: dict[str, Any] = {
            "id": id,
            "created": int(time.time()),
            "model": generation.model,
            "system_fingerprint": generation.fingerprint,
        }
        prompts = [
            (prompt, number)
            for prompt in generation.prompts
            for number in range(generation.choices)
        ]
        self._count = len(prompts)
        self._tokens = [0] * self._count
        self._cached: int | None = None
        record.choices = self._count
        record.prompt_tokens = sum(len(prompt.ids) for prompt in generation.prompts)
        responder.limits.take_tokens(record.key, record.prompt_tokens)
        self.stream = merge(
            [
                self._pieces(f"{id}-{index}", prompt, number)
                for index, (prompt, number) in enumerate(prompts)
            ],
            quiet_s=responder.keep_alive_s,
            timeout_s=responder.timeout_s,
            at_once=responder.at_once,
        )

    async def whole(self) -> Response:
        """Return the complete response, without streaming."""
        gathered: list[list[Piece]] = [[] for _ in range(self._count)]
        async with aclosing(self.stream):
            async for event in self.stream:
                if event is not None:
                    self._note(event)
                    gathered[event.index].append(event.piece)
        answers = [
            Piece(
                text="".join(piece.text for piece in found),
                tokens=found[-1].tokens,
                finish_reason=found[-1].finish_reason,
                logprobs=tuple(entry for piece in found for entry in piece.logprobs),
                prompt_logprobs=found[0].prompt_logprobs,
                prompt_offsets=found[0].prompt_offsets,
            )
            for found in gathered
        ]
        if self._responder.log_text:
            self._record.answer = [answer.text for answer in answers]

        def written() -> str:
            body = self._g.format.whole(self._head, answers, self._usage())
            return str(body.model_dump_json())

        # Log-probabilities are thousands of objects.
        many = any(answer.logprobs or answer.prompt_logprobs for answer in answers)
        content = await _thread_if(many, written)
        return Response(content, media_type="application/json")

    async def first(self) -> Event | None:
        """Return the first event, or None if the keep-alive interval passes first.

        It is awaited before the head is sent, so that a rejection is a status and not an event.
        """
        return await anext(self.stream)

    async def events(
        self, first: Event | None, include_usage: bool, usage_in_chunks: bool
    ) -> AsyncGenerator[bytes, None]:
        """Yield the bytes of the stream, ending with an error event if it fails."""
        written, head = self._g.format, {**self._head, "object": self._g.format.chunk_object}
        event: Event | None = first
        try:
            yield _sse(written.opening(head, self._count))
            while True:
                if event is None:
                    yield b": waiting\n\n"
                else:
                    self._note(event)
                    chunks = await _thread_if(
                        event.piece.prompt_logprobs is not None,
                        partial(written.events, head, event),
                    )
                    if usage_in_chunks:
                        usage = self._usage().model_dump()
                        chunks = [{**chunk, "usage": usage} for chunk in chunks]
                    yield _sse(chunks)
                try:
                    event = await anext(self.stream)
                except StopAsyncIteration:
                    break
            end = written.closing(head, self._usage(), include_usage=include_usage)
            yield _sse(end) + written.done
        except Exception as error:  # noqa: BLE001 - the status is sent; an event is all that is left
            told = to_api_error(error)
            self._record.code = told.code
            yield _sse(written.failure(told))
        except (GeneratorExit, asyncio.CancelledError):
            self._record.code = "client_gone"
            raise

    async def _pieces(self, id: str, prompt: Prompt, number: int) -> AsyncGenerator[Piece, None]:
        g = self._g
        echo = Echo(ids=prompt.ids, offsets=prompt.offsets) if g.text.echo else None
        # aclosing: after a stop string, an error or a disconnect the engine's slot must be freed
        # immediately, not when the generator is garbage-collected.
        async with (
            aclosing(
                self._responder.backend.generate(
                    id, prompt.ids, _seeded(prompt.sampling, number), session=g.session
                )
            ) as items,
            aclosing(self._deltas(items)) as deltas,
            aclosing(pieces(deltas, self._responder.vocabulary, g.text, echo)) as found,
        ):
            async for piece in found:
                yield piece

    async def _deltas(
        self, items: AsyncGenerator[Accepted | Delta, None]
    ) -> AsyncGenerator[Delta, None]:
        record = self._record
        async for item in items:
            if isinstance(item, Accepted):
                record.replica = item.replica
                record.queue_s = record.elapsed_s()
                continue
            if record.ttft_s is None:
                record.ttft_s = record.elapsed_s()
            yield item

    def _note(self, event: Event) -> None:
        new = event.piece.tokens - self._tokens[event.index]
        self._tokens[event.index] = event.piece.tokens
        self._record.completion_tokens += new
        self._responder.limits.take_tokens(self._record.key, new)
        cached = event.piece.cached_tokens
        if cached is not None and event.index % self._g.choices == 0:  # once per prompt
            self._cached = (self._cached or 0) + cached
        if event.piece.finish_reason is not None:
            self._record.finish_reasons.append(event.piece.finish_reason)

    def _usage(self) -> Usage:
        record = self._record
        return Usage.of(record.prompt_tokens, record.completion_tokens, self._cached)


async def _thread_if(slow: bool, work: Callable[[], T]) -> T:
    """Return the result of `work`, which runs on a thread if it is slow."""
    return await asyncio.to_thread(work) if slow else work()


def _seeded(sampling: Sampling, number: int) -> Sampling:
    """Return the parameters of choice `number`: the same seed for all would give equal answers."""
    if sampling.seed is None or number == 0:
        return sampling
    return replace(sampling, seed=(sampling.seed + number) % 2**63)


async def await_unless_disconnected(request: Request, answer: Coroutine[Any, Any, T]) -> T:
    """Await `answer`, cancelling it if the client disconnects first."""
    answering = asyncio.ensure_future(answer)
    leaving = asyncio.ensure_future(_wait_for_disconnect(request))
    try:
        await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
        if answering.done():
            return answering.result()
        raise ApiError(499, "the client went away", code="client_gone")
    finally:
        for task in (answering, leaving):
            task.cancel()
        await asyncio.gather(answering, leaving, return_exceptions=True)


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _ClosingStream(StreamingResponse):
    """Streaming response that always closes its body and source; Starlette leaves that to the GC.

    If the client has already disconnected, the body never starts and so would close nothing.
    """

    def __init__(self, body: AsyncGenerator[bytes, None], source: AsyncGenerator[Any, None]):
        super().__init__(body, media_type="text/event-stream", headers=_STREAM_HEADERS)
        self._body, self._source = body, source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._source), aclosing(self._body):
            await super().__call__(scope, receive, send)


def _sse(bodies: list[dict[str, Any]]) -> bytes:
    return b"".join(
        (b"event: %b\n" % body["type"].encode() if "type" in body else b"")
        + b"data: "
        + orjson.dumps(body)
        + b"\n\n"
        for body in bodies
    )
