"""Response formats: chat or text completion, complete or as the events of a stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from ochat_ray.serve.answers import Event, Piece
from ochat_ray.serve.detokenize import Vocabulary
from ochat_ray.serve.engines.base import TokenLogprobs
from ochat_ray.serve.protocol.errors import ApiError
from ochat_ray.serve.protocol.responses import (
    AssistantMessage,
    ChatChoice,
    ChatCompletion,
    ChoiceLogprobs,
    ContentLogprob,
    PromptLogprob,
    PromptLogprobs,
    TextChoice,
    TextCompletion,
    TextLogprobs,
    TopLogprob,
    Usage,
    chat_chunk,
    text_chunk,
    usage_chunk,
)


class Format(Protocol):
    """Response format of a completion endpoint."""

    id_prefix: str
    chunk_object: str
    done: bytes
    """End of a complete stream."""

    def whole(self, head: Mapping[str, Any], answers: list[Piece], usage: Usage) -> Any:
        """Return the complete response, without streaming."""
        ...

    def opening(self, head: Mapping[str, Any], choices: int) -> list[dict[str, Any]]:
        """Return the events before any text."""
        ...

    def events(self, head: Mapping[str, Any], event: Event) -> list[dict[str, Any]]:
        """Return the events of one piece."""
        ...

    def closing(
        self, head: Mapping[str, Any], usage: Usage, *, include_usage: bool
    ) -> list[dict[str, Any]]:
        """Return the events after the last piece."""
        ...

    def failure(self, error: ApiError) -> list[dict[str, Any]]:
        """Return the events that end a broken stream."""
        ...


class _Chunks:
    """End of a stream of chat or text completions."""

    done = b"data: [DONE]\n\n"

    def closing(
        self, head: Mapping[str, Any], usage: Usage, *, include_usage: bool
    ) -> list[dict[str, Any]]:
        """Return the events after the last piece; see `Format.closing`."""
        return [usage_chunk(head, usage)] if include_usage else []

    def failure(self, error: ApiError) -> list[dict[str, Any]]:
        """Return the events that end a broken stream; see `Format.failure`."""
        return [error.body()]


class ChatFormat(_Chunks):
    """Format of chat.completion and chat.completion.chunk.

    The first chunk has the role; the finish reason has its own chunk.
    """

    id_prefix = "chatcmpl-"
    chunk_object = "chat.completion.chunk"

    def __init__(
        self, vocabulary: Vocabulary, *, logprobs: bool, prompt_logprobs: int | None = None
    ) -> None:
        self._vocabulary = vocabulary
        self._logprobs = logprobs
        self._prompt_logprobs = prompt_logprobs

    def whole(self, head: Mapping[str, Any], answers: list[Piece], usage: Usage) -> ChatCompletion:
        """Return the complete response; see `Format.whole`."""
        choices = [self.choice(index, answer) for index, answer in enumerate(answers)]
        prompt = _prompt_logprobs(self._vocabulary, answers[0], self._prompt_logprobs)
        return ChatCompletion(choices=choices, usage=usage, prompt_logprobs=prompt, **head)

    def choice(self, index: int, answer: Piece) -> ChatChoice:
        """Return one complete answer."""
        assert answer.finish_reason is not None
        return ChatChoice(
            index=index,
            message=AssistantMessage(content=answer.text),
            logprobs=self._content(answer),
            finish_reason=answer.finish_reason,
        )

    def opening(self, head: Mapping[str, Any], choices: int) -> list[dict[str, Any]]:
        """Return the events before any text; see `Format.opening`."""
        delta = {"role": "assistant", "content": ""}
        return [chat_chunk(head, index, delta=delta) for index in range(choices)]

    def events(self, head: Mapping[str, Any], event: Event) -> list[dict[str, Any]]:
        """Return the events of one piece; see `Format.events`."""
        piece, written = event.piece, []
        if piece.text or piece.logprobs:
            written.append(
                chat_chunk(
                    head,
                    event.index,
                    delta={"content": piece.text},
                    logprobs=self._content(piece),
                )
            )
        if piece.finish_reason is not None:
            written.append(
                chat_chunk(head, event.index, delta={}, finish_reason=piece.finish_reason)
            )
        return written

    def _content(self, piece: Piece) -> ChoiceLogprobs | None:
        if not self._logprobs:
            return None
        content = [
            ContentLogprob(
                **_named(self._vocabulary, entry.token_id),
                logprob=entry.logprob,
                top_logprobs=[
                    TopLogprob(**_named(self._vocabulary, token_id), logprob=logprob)
                    for token_id, logprob in entry.top
                ],
            )
            for _, entry in piece.logprobs
            if entry.logprob is not None
        ]
        return ChoiceLogprobs(content=content)


class TextFormat(_Chunks):
    """Format of text_completion, whose chunks have the same type as the complete response.

    `logprobs` and `prompt_logprobs` are the numbers of most likely tokens to report.
    """

    id_prefix = "cmpl-"
    chunk_object = "text_completion"

    def __init__(
        self, vocabulary: Vocabulary, *, logprobs: int | None, prompt_logprobs: int | None = None
    ) -> None:
        self._vocabulary = vocabulary
        self._logprobs = logprobs
        self._prompt_logprobs = prompt_logprobs

    def whole(self, head: Mapping[str, Any], answers: list[Piece], usage: Usage) -> TextCompletion:
        """Return the complete response; see `Format.whole`."""
        choices = []
        for index, answer in enumerate(answers):
            assert answer.finish_reason is not None
            choices.append(
                TextChoice(
                    index=index,
                    text=answer.text,
                    logprobs=self._texts(answer),
                    finish_reason=answer.finish_reason,
                    prompt_logprobs=_prompt_logprobs(
                        self._vocabulary, answer, self._prompt_logprobs
                    ),
                )
            )
        return TextCompletion(choices=choices, usage=usage, **head)

    def opening(self, head: Mapping[str, Any], choices: int) -> list[dict[str, Any]]:  # noqa: ARG002
        """Return no events; see `Format.opening`."""
        return []

    def events(self, head: Mapping[str, Any], event: Event) -> list[dict[str, Any]]:
        """Return the events of one piece; see `Format.events`."""
        piece = event.piece
        return [
            text_chunk(
                head,
                event.index,
                text=piece.text,
                logprobs=self._texts(piece),
                finish_reason=piece.finish_reason,
            )
        ]

    def _texts(self, piece: Piece) -> TextLogprobs | None:
        if self._logprobs is None:
            return None
        logprobs = list(piece.logprobs)
        if piece.prompt_logprobs is not None and piece.prompt_offsets:
            prompt = piece.prompt_logprobs.entries()
            logprobs = [*zip(piece.prompt_offsets, prompt, strict=True), *logprobs]
        entries = [entry for _, entry in logprobs]
        return TextLogprobs(
            tokens=[self._text(entry.token_id) for entry in entries],
            token_logprobs=[entry.logprob for entry in entries],
            top_logprobs=[self._top(entry, self._logprobs) for entry in entries],
            text_offset=[offset for offset, _ in logprobs],
        )

    def _top(self, entry: TokenLogprobs, count: int) -> dict[str, float] | None:
        if entry.logprob is None:
            return None
        by_text: dict[str, float] = {}
        # Most likely first: of tokens with the same text, that one is kept.
        for token_id, logprob in (*entry.top[:count], (entry.token_id, entry.logprob)):
            by_text.setdefault(self._text(token_id), logprob)
        return by_text

    def _text(self, token_id: int) -> str:
        return _shown(self._vocabulary.spelling(token_id))


def _prompt_logprobs(
    vocabulary: Vocabulary, answer: Piece, count: int | None
) -> PromptLogprobs | None:
    """Return vLLM's `prompt_logprobs`, with the token itself and the `count` most likely ones."""
    if count is None or answer.prompt_logprobs is None:
        return None
    return [
        None
        if entry.logprob is None
        else {
            str(token_id): PromptLogprob(
                logprob=logprob, rank=rank, decoded_token=_shown(vocabulary.spelling(token_id))
            )
            for token_id, logprob, rank in (
                (entry.token_id, entry.logprob, entry.rank),
                *((i, value, rank) for rank, (i, value) in enumerate(entry.top[:count], 1)),
            )
        }
        for entry in answer.prompt_logprobs.entries()
    ]


def _named(vocabulary: Vocabulary, token_id: int) -> dict[str, Any]:
    spelling = vocabulary.spelling(token_id)
    return {"token": _shown(spelling), "bytes": list(spelling)}


def _shown(spelling: bytes) -> str:
    """Return a token's text; incomplete characters are written as bytes, as by OpenAI."""
    try:
        return spelling.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelling)
