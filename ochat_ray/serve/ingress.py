"""HTTP ingress: OpenAI's routes as a FastAPI app over a `Backend`. Does not import Ray."""

# No `from __future__ import annotations` here: FastAPI reads the routes' annotations as classes.

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import Body, FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from ochat_ray.serve.adapters import AdapterCatalog, ServedModels
from ochat_ray.serve.admission import Admission
from ochat_ray.serve.backend import Backend
from ochat_ray.serve.checks import check_logprobs, check_size, check_supported
from ochat_ray.serve.embeddings import Embedding, EmbeddingRequest, Embeddings, check_lengths
from ochat_ray.serve.engines.base import RequestRefusedError
from ochat_ray.serve.engines.schema_trial import PARAM as CONSTRAINT
from ochat_ray.serve.generation import Generation, Prompt
from ochat_ray.serve.keys import KeyRing
from ochat_ray.serve.limits import Limits
from ochat_ray.serve.metrics import Metrics, Record
from ochat_ray.serve.prompts import Prompts
from ochat_ray.serve.protocol.errors import ApiError, ErrorBody, add_error_handlers
from ochat_ray.serve.protocol.formats import ChatFormat, Format, TextFormat
from ochat_ray.serve.protocol.lenient import (
    LenientChatRequest,
    LenientCompletionRequest,
    ignored_fields,
)
from ochat_ray.serve.protocol.requests import (
    ChatRequest,
    CompletionRequest,
    SamplingRequest,
)
from ochat_ray.serve.protocol.responses import (
    ChatCompletion,
    Detokenized,
    Health,
    Model,
    ModelList,
    ServerLoad,
    TextCompletion,
    Tokens,
    Version,
)
from ochat_ray.serve.protocol.responses_format import ResponseBody, ResponsesFormat
from ochat_ray.serve.protocol.responses_request import ResponsesRequest, renamed
from ochat_ray.serve.protocol.tokenize_request import DetokenizeRequest, TokenizeRequest
from ochat_ray.serve.protocol.tool_format import ToolFormat
from ochat_ray.serve.settings import IngressSettings
from ochat_ray.tokenization.tokenizer import ends_of_turn

IGNORED_HEADER = "x-ochat-ray-ignored"
"""Response header that lists the fields a lenient server removed from the request."""

NAMES, NAME_CHARACTERS = 32, 64
"""Names in that header, and characters of each."""

ROUTES = (
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/tokenize",
    "/detokenize", "/v1/models", "/version", "/metrics", "/load", "/openapi.json",
)  # fmt: skip

_ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "What is wrong with the request, or with its key"},
    "5XX": {"model": ErrorBody, "description": "The server failed, or cannot answer now"},
}
# Before OpenAPI 3.2, `schema` describes each event of a stream.
_EVENT = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
_STREAM = {"text/event-stream": {"schema": _EVENT}}


def build_app(
    settings: IngressSettings,
    tokenizer: Any,
    backend: Backend,
    adapters: AdapterCatalog | None = None,
) -> FastAPI:
    """Build the ASGI application of one ingress replica."""
    encoder = Prompts(tokenizer, settings.model_type, settings.vocabulary)
    stop_ids = ends_of_turn(tokenizer)
    card = Model(
        id=settings.served_model_name,
        created=settings.created,
        max_model_len=settings.context_length,
        training=settings.training,
    )
    served = ServedModels(card, settings.fingerprint, adapters)
    metrics = Metrics()
    limits = Limits(
        requests_per_minute=settings.requests_per_minute,
        tokens_per_minute=settings.tokens_per_minute,
    )
    keys = KeyRing(settings.keys, settings.keys_path)
    # No documentation pages: they load scripts from other hosts. The OpenAPI document is served.
    app = FastAPI(
        title="ochat_ray",
        version=version("ochat-ray"),
        docs_url=None,
        redoc_url=None,
        responses=_ERRORS,
    )
    add_error_handlers(app)
    app.add_middleware(
        Admission,
        keys=keys,
        limits=limits,
        metrics=metrics,
        max_body_bytes=settings.max_body_bytes,
        insecure_open=settings.insecure_open,
        routes=ROUTES,
        own_login="/ui" if settings.ui else None,
    )
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=["*"],  # SDKs for browsers add headers of their own
            expose_headers=["x-request-id", IGNORED_HEADER],
        )
    chat_request: Any = ChatRequest if settings.strict else LenientChatRequest
    completion_request: Any = CompletionRequest if settings.strict else LenientCompletionRequest

    @app.head("/health", include_in_schema=False)
    @app.get("/health", responses={503: {"model": Health}})
    async def health() -> Response:
        """Return 200 once a model replica can answer, 503 until then."""
        if await backend.ready():
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": "not ready"}, status_code=503, headers={"Retry-After": "2"})

    @app.post("/ping", response_class=Response, responses={503: {}})
    @app.get("/ping", response_class=Response, responses={503: {}})
    async def ping() -> Response:
        """Return the status of /health without a body, as vLLM and SageMaker do."""
        return Response(status_code=200 if await backend.ready() else 503)

    @app.get("/load")
    async def load() -> ServerLoad:
        """Return the number of other requests in progress in this ingress replica."""
        return ServerLoad(server_load=metrics.in_flight - 1)  # without this one

    @app.get("/version")
    async def version_() -> Version:
        """Return the version of this package and the engine's name."""
        return Version(version=app.version, engine=settings.engine)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics_() -> Response:
        """Return the metrics in Prometheus text format."""
        return Response(
            metrics.expose(settings.served_model_name, await backend.loads()),
            media_type="text/plain; version=0.0.4",
        )

    @app.head("/v1/models", include_in_schema=False)
    @app.get("/v1/models")
    async def models() -> ModelList:
        """List the model and its adapters."""
        return served.listed()

    @app.head("/v1/models/{name:path}", include_in_schema=False)
    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Model:
        """Return the model with this name."""
        return served.find(name).card

    @app.post("/tokenize")
    async def tokenize(request: Annotated[TokenizeRequest, Body()]) -> Tokens:
        """Return the token ids of a prompt or a conversation, as the model would read them."""
        if request.model is not None:
            served.find(request.model)
        if request.messages is not None:
            check_size(request.messages, settings.max_messages)
            ids = await encoder.conversation(
                request, add_generation_prompt=request.add_generation_prompt
            )
        else:
            bos = request.add_special_tokens is not False
            ids = await encoder.text(request.prompt or "", bos=bos)
        return Tokens(count=len(ids), max_model_len=settings.context_length, tokens=ids)

    @app.post("/detokenize")
    async def detokenize(request: Annotated[DetokenizeRequest, Body()]) -> Detokenized:
        """Return the text of token ids, with the names of special tokens."""
        if request.model is not None:
            served.find(request.model)
        return Detokenized(prompt=await encoder.decoded(encoder.checked(request.tokens, "tokens")))

    @app.post(
        "/v1/chat/completions", response_model=ChatCompletion, responses={200: {"content": _STREAM}}
    )
    async def chat_completions(
        http: Request,
        request: chat_request,
    ) -> Response:
        """Answer a conversation, as one response or as server-sent events."""
        assert isinstance(request, ChatRequest)
        scores, words = request.prompt_logprobs, encoder.vocabulary
        form: Format
        if request.calls is not None:
            form = ToolFormat(words, request.calls, prompt_logprobs=scores)
        else:
            form = ChatFormat(words, logprobs=bool(request.logprobs), prompt_logprobs=scores)
        return await converse(http, request, form)

    @app.post("/v1/responses", response_model=ResponseBody, responses={200: {"content": _STREAM}})
    async def responses(http: Request, request: ResponsesRequest) -> Response:
        """Answer a conversation with output items, as one response or as server-sent events."""
        chat = request.chat()
        form = ResponsesFormat(request, chat.calls)
        try:
            return await converse(http, chat, form)
        except ApiError as error:
            raise renamed(error) from error

    async def converse(http: Request, request: ChatRequest, form: Format) -> Response:
        served.find(request.model)
        check_size(request.messages, settings.max_messages)
        turns = request.turns
        continued = bool(request.continue_final_message)
        ids = await encoder.conversation(
            request,
            add_generation_prompt=not continued and request.add_generation_prompt is not False,
            continue_final=continued,
        )
        # Turns of a conversation share their beginning, so they reach the replica that cached it.
        opening = next((n for n, turn in enumerate(turns, 1) if turn.role == "user"), len(turns))
        session = "\n".join(turn.text for turn in turns[:opening])
        return await respond(http, request, [ids], form, session, continues=continued)

    @app.post(
        "/v1/completions", response_model=TextCompletion, responses={200: {"content": _STREAM}}
    )
    async def completions(
        http: Request,
        request: completion_request,
    ) -> Response:
        """Complete text or token ids, as one response or as server-sent events."""
        assert isinstance(request, CompletionRequest)
        served.find(request.model)
        prompts = [
            await encoder.text(prompt) if isinstance(prompt, str) else encoder.checked(prompt)
            for prompt in request.prompts
        ]
        form = TextFormat(
            encoder.vocabulary, logprobs=request.logprobs, prompt_logprobs=request.prompt_logprobs
        )
        session = str(prompts[0][:256])
        return await respond(http, request, prompts, form, session, continues=not request.echo)

    async def respond(
        http: Request,
        request: SamplingRequest,
        prompts: Sequence[list[int]],
        form: Format,
        session: str,
        *,
        continues: bool,
    ) -> Response:
        check_supported(request, settings.engine)
        model = served.find(request.model)
        record: Record = http.state.record
        record.model = request.model
        record.stream = bool(request.stream)
        record.ignored = ignored_fields(request)
        if settings.log_text:
            record.prompt = request.model_dump(include={request.prompt_field})
        room = settings.context_length - (request.limit or 1)
        prompts = [request.truncated(ids, room) for ids in prompts]
        bad_words = await encoder.words(request.bad_words or ())
        rules = [
            request.sampling(
                prompt_tokens=len(ids),
                context_length=settings.context_length,
                vocabulary=settings.vocabulary,
                stop_ids=stop_ids,
                bad_words=bad_words,
            )
            for ids in prompts
        ]
        check_logprobs(request, rules, sum(map(len, prompts)))
        text = request.text_rules(rules[0], continues=continues)
        answers = [
            Prompt(
                ids=ids,
                sampling=replace(sampling, adapter=model.adapter),
                offsets=await encoder.offsets(ids, special_tokens=text.special_tokens)
                if text.echo and request.wanted_logprobs is not None
                else (),
            )
            for ids, sampling in zip(prompts, rules, strict=True)
        ]
        generation = Generation(
            backend=backend,
            vocabulary=encoder.vocabulary,
            limits=limits,
            format=form,
            model=request.model,
            fingerprint=model.fingerprint,
            prompts=answers,
            choices=request.choices,
            at_once=settings.choices_at_once,
            text=text,
            session=http.headers.get("x-session-id") or _digest(session),
            keep_alive_s=settings.keep_alive_s,
            timeout_s=settings.request_timeout_s,
            log_text=settings.log_text,
        )
        try:
            response = await generation.respond(
                http,
                stream=record.stream,
                include_usage=request.include_usage,
                usage_in_chunks=request.usage_in_chunks,
            )
        except RequestRefusedError as error:
            if error.param == CONSTRAINT:
                error.param = request.constraint_field
            raise
        if record.ignored:
            response.headers[IGNORED_HEADER] = _header(record.ignored)
        return response

    @app.post("/v1/embeddings", response_model=Embeddings)
    async def embeddings(http: Request, request: EmbeddingRequest) -> Response:
        """Return one embedding per input: the mean of the last hidden states, of length 1."""
        model = served.find(request.model)
        record: Record = http.state.record
        record.model = request.model
        if settings.log_text:
            record.prompt = request.model_dump(include={"input"})
        request.check(settings.embedding_size)
        prompts = await encoder.inputs(request.inputs, "input")
        check_lengths(prompts, settings.context_length)
        embedding = Embedding(
            backend=backend,
            limits=limits,
            model=request.model,
            adapter=model.adapter,
            prompts=prompts,
            at_once=settings.choices_at_once,
            session=http.headers.get("x-session-id") or _digest(str(prompts[0][:256])),
            timeout_s=settings.request_timeout_s,
        )
        return await embedding.respond(http, as_base64=request.encoding_format == "base64")

    if settings.ui:
        from ochat_ray.serve.ui import mount_ui

        def key_name(key: str) -> str | None:
            found = keys.find(f"Bearer {key}")
            return found.name if found else None

        names = [settings.served_model_name]
        mount_ui(app, served_models=names, check_key=key_name if keys else None)
    return app


def _header(names: Sequence[str]) -> str:
    """Return names as a header's value; a client may have sent any characters, and any number."""
    shown = [quote(name[:NAME_CHARACTERS], safe="._-", errors="replace") for name in names]
    more = [f"and {len(names) - NAMES} more"] if len(names) > NAMES else []
    return ", ".join([*shown[:NAMES], *more])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
