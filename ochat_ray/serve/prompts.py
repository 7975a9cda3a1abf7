"""Convert the prompts of requests to token ids, and ids to text. Long ones run on a thread."""

from __future__ import annotations

import asyncio
import ctypes
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol, TypeVar

from ochat_ray.errors import UserError
from ochat_ray.recipes import CHAT
from ochat_ray.schema import Turn
from ochat_ray.serve.detokenize import Detokenizer, text_offsets, vocabulary_of
from ochat_ray.serve.engines.base import RequestRefusedError
from ochat_ray.serve.protocol.conversation import own_turns_of
from ochat_ray.serve.protocol.decoding import check_ids
from ochat_ray.serve.protocol.fields import Message
from ochat_ray.serve.protocol.tool_fields import ToolDefinition
from ochat_ray.tokenization.chat_template import TemplateError
from ochat_ray.tokenization.messages import Chat
from ochat_ray.tokenization.template import encode, template_for
from ochat_ray.tokenization.tokenizer import encode_texts

T = TypeVar("T")


_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's


class Conversation(Protocol):
    """Fields of a request with messages."""

    @property
    def messages(self) -> Sequence[Message] | None: ...
    @property
    def tools(self) -> Sequence[ToolDefinition] | None: ...
    @property
    def turns(self) -> list[Turn]: ...
    @property
    def condition(self) -> str | None: ...
    @property
    def chat_template_kwargs(self) -> dict[str, Any] | None: ...


LONG_TEXT = 4096
"""Characters, or ids, from which work runs on a thread, to keep other streams responsive."""

HUGE_TEXT = 2**18
"""Those that have a thread of their own, one after the other: the work takes hundreds of bytes per
token, and each thread that did it once keeps much of them."""


class Prompts:
    """Tokenizer and template of the served model."""

    def __init__(self, tokenizer: Any, model_type: str, vocabulary: int) -> None:
        self.vocabulary = vocabulary_of(tokenizer)
        self._tokenizer = tokenizer
        self._model_type = model_type
        self._ids = vocabulary
        if model_type == CHAT:
            adds_bos = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
        else:
            adds_bos = template_for(model_type).bos
        self._bos = [tokenizer.bos_token_id] if adds_bos else []
        self._huge = ThreadPoolExecutor(1, "huge-prompts")

    async def conversation(
        self,
        request: Conversation,
        *,
        add_generation_prompt: bool,
        continue_final: bool = False,
    ) -> list[int]:
        """Return the ids of a request's messages; a continued one ends within its last turn.

        Raises:
            RequestRefusedError: The template cannot represent them.
        """
        own = self._model_type == CHAT
        if not own:
            _check_for_2023(request)
        work = partial(
            self._own_ids if own else self._ids_of_2023,
            request,
            add_generation_prompt=add_generation_prompt,
            continue_final=continue_final,
        )
        return await self._run(work, sum(len(turn.text) for turn in request.turns))

    def _ids_of_2023(
        self, request: Conversation, *, add_generation_prompt: bool, continue_final: bool
    ) -> list[int]:
        ids = encode(
            request.turns,
            self._model_type,
            self._tokenizer,
            condition=request.condition or "",
            add_generation_prompt=add_generation_prompt,
        )[0]
        return ids[:-1] if continue_final else ids  # without the end-of-turn token

    def _own_ids(self, request: Conversation, **options: bool) -> list[int]:
        """Return the ids that the model's own chat template gives."""
        template = self._tokenizer.chat
        if request.condition:
            raise RequestRefusedError("condition: this model has none", "condition")
        if request.tools and not template.writes_hermes_calls:
            raise RequestRefusedError(
                "tools: the model's chat template writes calls in a syntax that this server does "
                "not read; leave them out, or send tool_choice none",
                "tools",
            )
        tools = [tool.as_sent() for tool in request.tools or ()]
        chat = Chat(
            own_turns_of(request.messages or ()),
            json.dumps(tools, ensure_ascii=False) if tools else "",
        )
        try:
            arguments = template.checked_arguments(request.chat_template_kwargs or {})
        except UserError as error:
            field = "chat_template_kwargs"
            raise RequestRefusedError(f"{field}: {error}", field) from error
        try:
            return template.ids(chat, arguments=arguments, **options)
        except TemplateError as error:
            problem = f"messages: the model's chat template refuses them: {error}"
            raise RequestRefusedError(problem, "messages") from error

    async def text(self, text: str, *, bos: bool = True) -> list[int]:
        """Return the ids of a text, after the template's BOS token if `bos`."""
        first = self._bos if bos else []
        return await self._run(lambda: first + encode_texts([text], self._tokenizer)[0], len(text))

    def checked(self, ids: list[int], name: str = "prompt") -> list[int]:
        """Return ids that were sent in the field `name`, if the model has them all."""
        check_ids(name, ids, self._ids)
        return ids

    async def inputs(self, inputs: Sequence[str | list[int]], name: str) -> list[list[int]]:
        """Return the ids of texts, after the BOS token, and checked ids of the field `name`."""
        texts = [item for item in inputs if isinstance(item, str)]
        encoded = iter(
            await self._run(lambda: encode_texts(texts, self._tokenizer), sum(map(len, texts)))
        )
        return [
            self._bos + next(encoded) if isinstance(item, str) else self.checked(item, name)
            for item in inputs
        ]

    async def words(self, words: Sequence[str]) -> list[list[int]]:
        """Return the ids of words, each at the beginning of a text and after a space."""
        texts = [prefix + word.lstrip(" ") for word in words for prefix in ("", " ")]
        found = await self._run(lambda: encode_texts(texts, self._tokenizer), sum(map(len, texts)))
        return [ids for ids in found if ids]

    async def offsets(self, ids: Sequence[int], *, special_tokens: bool) -> tuple[int, ...]:
        """Return the offset of each id's text in their text."""
        return await self._run(
            lambda: text_offsets(self.vocabulary, ids, special_tokens=special_tokens), len(ids)
        )

    async def decoded(self, ids: Sequence[int]) -> str:
        """Return the text of ids, with the names of special tokens."""
        return await self._run(
            lambda: Detokenizer(self.vocabulary, special_tokens=True).push(ids), len(ids)
        )

    async def _run(self, work: Callable[[], T], size: int) -> T:
        if size < LONG_TEXT:
            return work()
        if size < HUGE_TEXT:
            return await asyncio.to_thread(work)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._huge, _then_free, work)


def _check_for_2023(request: Conversation) -> None:
    if request.chat_template_kwargs:
        field = "chat_template_kwargs"
        raise RequestRefusedError(f"{field}: this model's template has no variables", field)
    for position, message in enumerate(request.messages or ()):
        if message.reasoning_content:
            raise RequestRefusedError(
                f"messages[{position}].reasoning_content: this model's template has no reasoning",
                "messages",
            )


def _then_free(work: Callable[[], T]) -> T:
    """Return the result of the work, whose freed memory glibc would keep for the thread."""
    try:
        return work()
    finally:
        if _malloc_trim is not None:
            _malloc_trim(0)
