"""HTTP ingress: OpenAI's routes over a `Backend`. Does not import Ray."""

# No `from __future__ import annotations` here: FastAPI reads the routes' annotations as classes.

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import Body, Request
from fastapi.responses import JSONResponse, Response

from ochat_ray.serve.adapters import AdapterCatalog, ServedModels
from ochat_ray.serve.backend import Backend
from ochat_ray.serve.checks import check_logprobs, check_size, check_supported
from ochat_ray.serve.embeddings import Embedding, EmbeddingRequest, check_lengths
from ochat_ray.serve.engines.base import RequestRefusedError
from ochat_ray.serve.engines.schema_trial import PARAM as CONSTRAINT
from ochat_ray.serve.generation import Generation, Prompt, Responder
from ochat_ray.serve.keys import KeyRing
from ochat_ray.serve.limits import Limits
from ochat_ray.serve.metrics import Metrics, Record
from ochat_ray.serve.prompts import Prompts
from ochat_ray.serve.protocol.errors import ApiError
from ochat_ray.serve.protocol.formats import ChatFormat, Format, TextFormat
from ochat_ray.serve.protocol.lenient import ignored_fields
from ochat_ray.serve.protocol.requests import ChatRequest, CompletionRequest, SamplingRequest
from ochat_ray.serve.protocol.responses import (
    Detokenized,
    Model,
    ModelList,
    ServerLoad,
    Tokens,
    Version,
)
from ochat_ray.serve.protocol.responses_format import ResponsesFormat
from ochat_ray.serve.protocol.responses_request import ResponsesRequest, renamed
from ochat_ray.serve.protocol.tokenize_request import DetokenizeRequest, TokenizeRequest
from ochat_ray.serve.protocol.tool_format import ToolFormat
from ochat_ray.serve.settings import IngressSettings
from ochat_ray.tokenization.tokenizer import ends_of_turn

VERSION = version("ochat-ray")

IGNORED_HEADER = "x-ochat-ray-ignored"
"""Response header that lists the fields a lenient server removed from the request."""

NAMES, NAME_CHARACTERS = 32, 64
"""Names in that header, and characters of each."""


class Ingress:
    """Routes of one ingress replica, a method each."""

    def __init__(
        self,
        settings: IngressSettings,
        tokenizer: Any,
        backend: Backend,
        adapters: AdapterCatalog | None,
    ) -> None:
        self.metrics = Metrics()
        self.limits = Limits(
            requests_per_minute=settings.requests_per_minute,
            tokens_per_minute=settings.tokens_per_minute,
        )
        self.keys = KeyRing(settings.keys, settings.keys_path)
        self._settings = settings
        self._backend = backend
        self._encoder = Prompts(tokenizer, settings.model_type, settings.vocabulary)
        self._stop_ids = ends_of_turn(tokenizer)
        card = Model(
            id=settings.served_model_name,
            created=settings.created,
            max_model_len=settings.context_length,
            training=settings.training,
        )
        self._served = ServedModels(card, settings.fingerprint, adapters)
        self._responder = Responder(
            backend=backend,
            vocabulary=self._encoder.vocabulary,
            limits=self.limits,
            at_once=settings.choices_at_once,
            keep_alive_s=settings.keep_alive_s,
            timeout_s=settings.request_timeout_s,
            log_text=settings.log_text,
        )

    def key_name(self, key: str) -> str | None:
        """Return the name of an API key; None if there is no such key."""
        found = self.keys.find(f"Bearer {key}")
        return found.name if found else None

    async def health(self) -> Response:
        """Return 200 once a model replica can answer, 503 until then."""
        if await self._backend.ready():
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": "not ready"}, status_code=503, headers={"Retry-After": "2"})

    async def ping(self) -> Response:
        """Return the status of /health without a body, as vLLM and SageMaker do."""
        return Response(status_code=200 if await self._backend.ready() else 503)

    async def load(self) -> ServerLoad:
        """Return the number of other requests in progress in this ingress replica."""
        return ServerLoad(server_load=self.metrics.in_flight - 1)  # without this one

    async def version_(self) -> Version:
        """Return the version of this package and the engine's name."""
        return Version(version=VERSION, engine=self._settings.engine)

    async def metrics_(self) -> Response:
        """Return the metrics in Prometheus text format."""
        return Response(
            self.metrics.expose(self._settings.served_model_name, await self._backend.loads()),
            media_type="text/plain; version=0.0.4",
        )

    async def models(self) -> ModelList:
        """List the model and its adapters."""
        return self._served.listed()

    async def model(self, name: str) -> Model:
        """Return the model with this name."""
        return self._served.find(name).card

    async def tokenize(self, request: Annotated[TokenizeRequest, Body()]) -> Tokens:
        """Return the token ids of a prompt or a conversation, as the model would read them."""
        if request.model is not None:
            self._served.find(request.model)
        if request.messages is not None:
            check_size(request.messages, self._settings.max_messages)
            ids = await self._encoder.conversation(
                request, add_generation_prompt=request.add_generation_prompt
            )
        else:
            bos = request.add_special_tokens is not False
            ids = await self._encoder.text(request.prompt or "", bos=bos)
        return Tokens(count=len(ids), max_model_len=self._settings.context_length, tokens=ids)

    async def detokenize(self, request: Annotated[DetokenizeRequest, Body()]) -> Detokenized:
        """Return the text of token ids, with the names of special tokens."""
        if request.model is not None:
            self._served.find(request.model)
        ids = self._encoder.checked(request.tokens, "tokens")
        return Detokenized(prompt=await self._encoder.decoded(ids))

    async def chat(self, http: Request, request: ChatRequest) -> Response:
        """Answer a conversation, as one response or as server-sent events."""
        scores, words = request.prompt_logprobs, self._encoder.vocabulary
        form: Format
        if request.calls is not None:
            form = ToolFormat(words, request.calls, prompt_logprobs=scores)
        else:
            form = ChatFormat(words, logprobs=bool(request.logprobs), prompt_logprobs=scores)
        return await self._converse(http, request, form)

    async def responses(self, http: Request, request: ResponsesRequest) -> Response:
        """Answer a conversation with output items, as one response or as server-sent events."""
        chat = request.chat()
        form = ResponsesFormat(request, chat.calls)
        try:
            return await self._converse(http, chat, form)
        except ApiError as error:
            raise renamed(error) from error

    async def _converse(self, http: Request, request: ChatRequest, form: Format) -> Response:
        self._served.find(request.model)
        check_size(request.messages, self._settings.max_messages)
        turns = request.turns
        continued = bool(request.continue_final_message)
        ids = await self._encoder.conversation(
            request,
            add_generation_prompt=not continued and request.add_generation_prompt is not False,
            continue_final=continued,
        )
        # Turns of a conversation share their beginning, so they reach the replica that cached it.
        opening = next((n for n, turn in enumerate(turns, 1) if turn.role == "user"), len(turns))
        session = "\n".join(turn.text for turn in turns[:opening])
        return await self._respond(http, request, [ids], form, session, continues=continued)

    async def complete(self, http: Request, request: CompletionRequest) -> Response:
        """Complete text or token ids, as one response or as server-sent events."""
        self._served.find(request.model)
        prompts = [
            await self._encoder.text(prompt)
            if isinstance(prompt, str)
            else self._encoder.checked(prompt)
            for prompt in request.prompts
        ]
        form = TextFormat(
            self._encoder.vocabulary,
            logprobs=request.logprobs,
            prompt_logprobs=request.prompt_logprobs,
        )
        session = str(prompts[0][:256])
        continues = not request.echo
        return await self._respond(http, request, prompts, form, session, continues=continues)

    async def _respond(
        self,
        http: Request,
        request: SamplingRequest,
        prompts: Sequence[list[int]],
        form: Format,
        session: str,
        *,
        continues: bool,
    ) -> Response:
        settings = self._settings
        check_supported(request, settings.engine)
        model = self._served.find(request.model)
        record: Record = http.state.record
        record.model = request.model
        record.stream = bool(request.stream)
        record.ignored = ignored_fields(request)
        if settings.log_text:
            record.prompt = request.model_dump(include={request.prompt_field})
        room = settings.context_length - (request.limit or 1)
        prompts = [request.truncated(ids, room) for ids in prompts]
        bad_words = await self._encoder.words(request.bad_words or ())
        rules = [
            request.sampling(
                prompt_tokens=len(ids),
                context_length=settings.context_length,
                vocabulary=settings.vocabulary,
                stop_ids=self._stop_ids,
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
                offsets=await self._encoder.offsets(ids, special_tokens=text.special_tokens)
                if text.echo and request.wanted_logprobs is not None
                else (),
            )
            for ids, sampling in zip(prompts, rules, strict=True)
        ]
        generation = Generation(
            format=form,
            model=request.model,
            fingerprint=model.fingerprint,
            prompts=answers,
            choices=request.choices,
            text=text,
            session=http.headers.get("x-session-id") or _digest(session),
        )
        try:
            response = await self._responder.respond(
                http,
                generation,
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

    async def embeddings(self, http: Request, request: EmbeddingRequest) -> Response:
        """Return one embedding per input: the mean of the last hidden states, of length 1."""
        settings = self._settings
        model = self._served.find(request.model)
        record: Record = http.state.record
        record.model = request.model
        if settings.log_text:
            record.prompt = request.model_dump(include={"input"})
        request.check(settings.embedding_size)
        prompts = await self._encoder.inputs(request.inputs, "input")
        check_lengths(prompts, settings.context_length)
        embedding = Embedding(
            backend=self._backend,
            limits=self.limits,
            model=request.model,
            adapter=model.adapter,
            prompts=prompts,
            at_once=settings.choices_at_once,
            session=http.headers.get("x-session-id") or _digest(str(prompts[0][:256])),
            timeout_s=settings.request_timeout_s,
        )
        return await embedding.respond(http, as_base64=request.encoding_format == "base64")


def _header(names: Sequence[str]) -> str:
    """Return names as a header's value; a client may have sent any characters, and any number."""
    shown = [quote(name[:NAME_CHARACTERS], safe="._-", errors="replace") for name in names]
    more = [f"and {len(names) - NAMES} more"] if len(names) > NAMES else []
    return ", ".join([*shown[:NAMES], *more])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
