"""Chat completion whose answers may call tools."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from ochat_ray.serve.answers import Event, Piece
from ochat_ray.serve.detokenize import Vocabulary
from ochat_ray.serve.protocol.formats import ChatFormat
from ochat_ray.serve.protocol.responses import (
    AssistantMessage,
    CalledFunction,
    ChatChoice,
    ChatReason,
    MadeCall,
    chat_chunk,
)
from ochat_ray.serve.protocol.tools import CallReader, CallRules, Part


class ToolFormat(ChatFormat):
    """Format of chat.completion and chat.completion.chunk with the calls read from the text.

    In a stream the first delta of a call has its id and name, the others more of its arguments. The
    finish reason of a complete call is "tool_calls"; of one that was cut off it is the engine's.
    """

    def __init__(
        self, vocabulary: Vocabulary, rules: CallRules, *, prompt_logprobs: int | None = None
    ) -> None:
        super().__init__(vocabulary, logprobs=False, prompt_logprobs=prompt_logprobs)
        self._rules = rules
        self._readers: defaultdict[int, CallReader] = defaultdict(rules.reader)

    def choice(self, index: int, answer: Piece) -> ChatChoice:
        """Return one complete answer; see `ChatFormat.choice`."""
        reader, content, calls = self._rules.reader(), "", list[MadeCall]()
        for part in [*reader.push(answer.text), *reader.flush()]:
            if part.is_name:
                made = CalledFunction(name=part.text, arguments="")
                calls.append(MadeCall(id=_new_id(), function=made))
            elif part.call is not None:
                calls[part.call].function.arguments += part.text
            else:
                content += part.text
        return ChatChoice(
            index=index,
            message=AssistantMessage(
                content=None if calls and not content else content, tool_calls=calls or None
            ),
            logprobs=None,
            finish_reason=_reason(answer, reader),
        )

    def events(self, head: Mapping[str, Any], event: Event) -> list[dict[str, Any]]:
        """Return the events of one piece; see `Format.events`."""
        reader, piece = self._readers[event.index], event.piece
        parts = reader.push(piece.text)
        if piece.finish_reason is not None:
            parts += reader.flush()
        written = [chat_chunk(head, event.index, delta=_delta(part)) for part in parts]
        if piece.finish_reason is not None:
            reason = _reason(piece, reader)
            written.append(chat_chunk(head, event.index, delta={}, finish_reason=reason))
        return written


def _delta(part: Part) -> dict[str, Any]:
    if part.call is None:
        return {"content": part.text}
    call: dict[str, Any] = {"index": part.call, "function": {"arguments": part.text}}
    if part.is_name:
        call |= {"id": _new_id(), "type": "function"}
        call["function"] = {"name": part.text, "arguments": ""}
    return {"tool_calls": [call]}


def _reason(answer: Piece, reader: CallReader) -> ChatReason:
    assert answer.finish_reason is not None
    called = answer.finish_reason == "stop" and reader.calls and not reader.is_open
    return "tool_calls" if called else answer.finish_reason


def _new_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"
