"""The HTTP side: OpenAI's routes as a FastAPI app over a backend that generates. No Ray here."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from importlib.metadata import version
from typing import Annotated, Any, Protocol

import orjson
from fastapi import Body, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from ochat_ray.errors import UserError
from ochat_ray.serve.admission import Admission
from ochat_ray.serve.args import IngressSettings
from ochat_ray.serve.detokenize import Detokenizer, StopStrings, Vocabulary, vocabulary_of
from ochat_ray.serve.engines.base import Delta, EngineError, FinishReason, Sampling
from ochat_ray.serve.protocol import (
    ApiError,
    AssistantMessage,
    ChatCompletion,
    ChatRequest,
    Choice,
    Model,
    ModelList,
    Usage,
    chunk,
    error_response,
    to_api_error,
    validation_error,
)
from ochat_ray.template import encode
from ochat_ray.tokenizer import end_of_turn_id


class Backend(Protocol):
    """Where answers come from: replicas behind a Serve handle, or a script in a test."""

    def generate(
        self, request_id: str, prompt_ids: list[int], sampling: Sampling
    ) -> AsyncGenerator[Delta, None]:
        """Deltas of one request; closing the generator cancels it. Raises EngineError."""
        ...

    async def ready(self) -> bool:
        """Whether some replica can answer now."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """A piece of an answer's text; the last piece has a reason. `tokens` counts from the start."""

    text: str
    tokens: int
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What every event of one answer repeats."""

    id: str
    created: int
    model: str
    prompt_tokens: int


async def pieces(
    deltas: AsyncIterator[Delta], vocabulary: Vocabulary, stops: tuple[str, ...]
) -> AsyncGenerator[Piece, None]:
    """Text of a stream of deltas, cut before the first stop string."""
    detokenizer, watcher, tokens = Detokenizer(vocabulary), StopStrings(stops), 0
    async for delta in deltas:
        tokens += len(delta.token_ids)
        text, stopped = watcher.push(detokenizer.push(delta.token_ids))
        if stopped:
            yield Piece(text=text, tokens=tokens, finish_reason="stop")
            return
        if delta.finish_reason is not None:
            text += watcher.flush()
            yield Piece(text=text, tokens=tokens, finish_reason=delta.finish_reason)
            return
        if text:
            yield Piece(text=text, tokens=tokens)
    raise ApiError(500, "the engine ended without a finish reason", code="engine_error")


def build_app(settings: IngressSettings, tokenizer: Any, backend: Backend) -> FastAPI:
    """The ASGI application of one ingress replica."""
    vocabulary = vocabulary_of(tokenizer)
    stop_ids = (end_of_turn_id(tokenizer),)
    card = Model(
        id=settings.served_model_name,
        created=settings.created,
        context_length=settings.context_length,
    )
    # No docs pages: they load scripts from other hosts. The OpenAPI document is there.
    app = FastAPI(title="ochat_ray", version=version("ochat-ray"), docs_url=None, redoc_url=None)
    _add_error_handlers(app)
    app.add_middleware(Admission, keys=settings.keys, max_body_bytes=settings.max_body_bytes)

    @app.get("/health")
    async def health() -> JSONResponse:
        """200 once a model replica can answer, 503 until then."""
        if await backend.ready():
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": "not ready"}, status_code=503, headers={"Retry-After": "2"})

    @app.get("/version")
    async def version_() -> dict[str, str]:
        """Of this package."""
        return {"version": app.version}

    @app.get("/v1/models")
    async def models() -> ModelList:
        """The one model that is served."""
        return ModelList(data=[card])

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Model:
        """The model of that name."""
        check_model(name)
        return card

    @app.post("/v1/chat/completions", response_model=ChatCompletion)
    async def chat_completions(request: Annotated[ChatRequest, Body()]) -> Response:
        """Answer a conversation, at once or as server-sent events."""
        check_model(request.model)
        turns = [message.turn() for message in request.messages]
        prompt_ids, _ = encode(turns, settings.model_type, tokenizer, add_generation_prompt=True)
        sampling = request.sampling(
            prompt_tokens=len(prompt_ids),
            context_length=settings.context_length,
            vocabulary=settings.vocabulary,
            stop_ids=stop_ids,
        )
        answer = Answer(
            id=f"chatcmpl-{uuid.uuid4().hex}",
            created=int(time.time()),
            model=settings.served_model_name,
            prompt_tokens=len(prompt_ids),
        )
        stream = _answer_pieces(backend, answer.id, prompt_ids, sampling, vocabulary, request.stops)
        if not request.stream:
            return JSONResponse((await _whole(answer, stream)).model_dump())
        # The first piece is awaited here, so that a refusal still is a status and not an event.
        first = await _first(stream)
        return _ClosingStream(
            _events(answer, first, stream, request.include_usage),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )

    def check_model(name: str) -> None:
        if name != settings.served_model_name:
            raise ApiError(
                404,
                f"there is no model {name!r} here; GET /v1/models lists what is",
                code="model_not_found",
                param="model",
            )

    return app


async def _answer_pieces(
    backend: Backend,
    request_id: str,
    prompt_ids: list[int],
    sampling: Sampling,
    vocabulary: Vocabulary,
    stops: tuple[str, ...],
) -> AsyncGenerator[Piece, None]:
    # aclosing: a stop string, an error or a client that left must free the engine's slot at
    # once, not when the generator is collected.
    async with (
        aclosing(backend.generate(request_id, prompt_ids, sampling)) as deltas,
        aclosing(pieces(deltas, vocabulary, stops)) as stream,
    ):
        async for piece in stream:
            yield piece


async def _whole(answer: Answer, stream: AsyncGenerator[Piece, None]) -> ChatCompletion:
    texts = []
    async with aclosing(stream):
        async for piece in stream:
            texts.append(piece.text)
    assert piece.finish_reason is not None
    return ChatCompletion(
        id=answer.id,
        created=answer.created,
        model=answer.model,
        choices=[
            Choice(
                message=AssistantMessage(content="".join(texts)),
                finish_reason=piece.finish_reason,
            )
        ],
        usage=Usage.of(answer.prompt_tokens, piece.tokens),
    )


async def _first(stream: AsyncGenerator[Piece, None]) -> Piece:
    try:
        return await anext(stream)
    except BaseException:
        await stream.aclose()
        raise


async def _events(
    answer: Answer, first: Piece, stream: AsyncGenerator[Piece, None], include_usage: bool
) -> AsyncGenerator[bytes, None]:
    head = (answer.id, answer.created, answer.model)
    piece: Piece | None = first
    async with aclosing(stream):
        try:
            yield _event(chunk(*head, delta={"role": "assistant", "content": ""}))
            while piece is not None:
                if piece.text:
                    yield _event(chunk(*head, delta={"content": piece.text}))
                if piece.finish_reason is not None:
                    yield _event(chunk(*head, finish_reason=piece.finish_reason))
                    if include_usage:
                        usage = Usage.of(answer.prompt_tokens, piece.tokens)
                        yield _event(chunk(*head, usage=usage))
                piece = await anext(stream, None)
        except Exception as error:  # noqa: BLE001 - the status is sent; an event is all that is left
            yield _event(to_api_error(error).body())
            return
        yield b"data: [DONE]\n\n"


class _ClosingStream(StreamingResponse):
    """Closes its iterator however it ends; Starlette leaves that to the garbage collector."""

    body_iterator: AsyncGenerator[bytes, None]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self.body_iterator):
            await super().__call__(scope, receive, send)


def _event(body: dict[str, object]) -> bytes:
    return b"data: " + orjson.dumps(body) + b"\n\n"


def _add_error_handlers(app: FastAPI) -> None:
    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return error_response(validation_error(error.errors()))

    async def http(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
        return error_response(
            ApiError(error.status_code, str(error.detail), code=code, headers=error.headers)
        )

    async def other(_: Request, error: Exception) -> Response:
        return error_response(to_api_error(error))

    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    for kind in (ApiError, EngineError, UserError, Exception):
        app.add_exception_handler(kind, other)
