"""ASGI application of an ingress replica: its routes and middleware."""

# No `from __future__ import annotations` here: FastAPI reads the routes' annotations as classes.

from typing import Any

from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import PlainTextResponse, Response

from ochat_ray.serve.adapters import AdapterCatalog
from ochat_ray.serve.admission import Admission
from ochat_ray.serve.backend import Backend
from ochat_ray.serve.embeddings import Embeddings
from ochat_ray.serve.ingress import IGNORED_HEADER, VERSION, Ingress
from ochat_ray.serve.protocol.errors import ErrorBody, add_error_handlers
from ochat_ray.serve.protocol.lenient import LenientChatRequest, LenientCompletionRequest
from ochat_ray.serve.protocol.requests import ChatRequest, CompletionRequest
from ochat_ray.serve.protocol.responses import ChatCompletion, Health, TextCompletion
from ochat_ray.serve.protocol.responses_format import ResponseBody
from ochat_ray.serve.settings import IngressSettings

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
_STREAMED: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": _EVENT}}}
}


def build_app(
    settings: IngressSettings,
    tokenizer: Any,
    backend: Backend,
    adapters: AdapterCatalog | None = None,
) -> FastAPI:
    """Build the ASGI application of one ingress replica."""
    ingress = Ingress(settings, tokenizer, backend, adapters)
    # No documentation pages: they load scripts from other hosts. The OpenAPI document is served.
    app = FastAPI(
        title="ochat_ray",
        version=VERSION,
        docs_url=None,
        redoc_url=None,
        responses=_ERRORS,
    )
    add_error_handlers(app)
    app.add_middleware(
        Admission,
        keys=ingress.keys,
        limits=ingress.limits,
        metrics=ingress.metrics,
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
    _add_routes(app, ingress, strict=settings.strict)
    if settings.ui:
        from ochat_ray.serve.ui import mount_ui

        names = [settings.served_model_name]
        mount_ui(app, served_models=names, check_key=ingress.key_name if ingress.keys else None)
    return app


def _add_routes(app: FastAPI, ingress: Ingress, *, strict: bool) -> None:
    app.get("/health", responses={503: {"model": Health}})(ingress.health)
    app.head("/health", include_in_schema=False)(ingress.health)
    app.get("/ping", response_class=Response, responses={503: {}})(ingress.ping)
    app.post("/ping", response_class=Response, responses={503: {}})(ingress.ping)
    app.get("/load")(ingress.load)
    app.get("/version")(ingress.version_)
    app.get("/metrics", response_class=PlainTextResponse)(ingress.metrics_)
    app.get("/v1/models")(ingress.models)
    app.head("/v1/models", include_in_schema=False)(ingress.models)
    app.get("/v1/models/{name:path}")(ingress.model)
    app.head("/v1/models/{name:path}", include_in_schema=False)(ingress.model)
    app.post("/tokenize")(ingress.tokenize)
    app.post("/detokenize")(ingress.detokenize)

    chat_request: Any = ChatRequest if strict else LenientChatRequest
    completion_request: Any = CompletionRequest if strict else LenientCompletionRequest

    @app.post("/v1/chat/completions", response_model=ChatCompletion, responses=_STREAMED)
    async def chat_completions(http: Request, request: chat_request) -> Response:
        """Answer a conversation, as one response or as server-sent events."""
        return await ingress.chat(http, request)

    app.post("/v1/responses", response_model=ResponseBody, responses=_STREAMED)(ingress.responses)

    @app.post("/v1/completions", response_model=TextCompletion, responses=_STREAMED)
    async def completions(http: Request, request: completion_request) -> Response:
        """Complete text or token ids, as one response or as server-sent events."""
        return await ingress.complete(http, request)

    app.post("/v1/embeddings", response_model=Embeddings)(ingress.embeddings)
