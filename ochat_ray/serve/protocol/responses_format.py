"""Format of /v1/responses: a response with output items, or the events by which it comes to be.

Source: OpenAI's API reference for responses and their streaming events.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from ochat_ray.serve.answers import Event, Piece
from ochat_ray.serve.protocol.errors import ApiError
from ochat_ray.serve.protocol.responses import Usage
from ochat_ray.serve.protocol.responses_request import ResponsesRequest
from ochat_ray.serve.protocol.tools import CallRules, Part

Json = dict[str, Any]


class ResponseBody(BaseModel):
    """Response to a request without streaming; OpenAI's reference has its other fields."""

    model_config = ConfigDict(extra="allow")

    id: str
    object: str = "response"
    created_at: int
    status: str
    model: str
    output: list[Json]


class ResponsesFormat:
    """Format of one answer: each message and each call is an output item."""

    id_prefix = "resp_"
    chunk_object = "response"
    done = b""

    def __init__(self, request: ResponsesRequest, rules: CallRules | None) -> None:
        self._request = request
        self._reader = rules.reader() if rules else None
        self._items: list[Json] = []
        self._events: list[Json] = []
        self._number = 0
        self._reason: str | None = None

    def whole(self, head: Mapping[str, Any], answers: list[Piece], usage: Usage) -> ResponseBody:
        """Return the complete response; see `Format.whole`."""
        self._read(answers[0])
        return ResponseBody(**self._response(head, usage))

    def opening(self, head: Mapping[str, Any], choices: int) -> list[Json]:  # noqa: ARG002
        """Return the events before any text; see `Format.opening`."""
        for kind in ("created", "in_progress"):
            self._add(f"response.{kind}", response=self._response(head, None))
        return self._taken()

    def events(self, head: Mapping[str, Any], event: Event) -> list[Json]:  # noqa: ARG002
        """Return the events of one piece; see `Format.events`."""
        self._read(event.piece)
        return self._taken()

    def closing(self, head: Mapping[str, Any], usage: Usage, *, include_usage: bool) -> list[Json]:  # noqa: ARG002
        """Return the event with the complete response; see `Format.closing`."""
        response = self._response(head, usage)
        self._add(f"response.{response['status']}", response=response)
        return self._taken()

    def failure(self, error: ApiError) -> list[Json]:
        """Return the event that ends a broken stream; see `Format.failure`."""
        self._add("error", code=error.code, message=error.message, param=error.param)
        return self._taken()

    def _read(self, piece: Piece) -> None:
        parts = [Part(text=piece.text)] if piece.text else []
        if self._reader is not None:
            parts = self._reader.push(piece.text)
            parts += self._reader.flush() if piece.finish_reason is not None else []
        for part in parts:
            if part.is_name:
                self._open("function_call", name=part.text, arguments="", call_id=_id("call_"))
            elif part.call is not None:
                self._items[-1]["arguments"] += part.text
                self._add("response.function_call_arguments.delta", delta=part.text, item=True)
            else:
                if not self._items or self._items[-1]["type"] != "message":
                    self._open("message", role="assistant", content=[])
                    self._items[-1]["content"].append(_text(""))
                    self._add("response.content_part.added", part=_text(""), item=True, content=0)
                self._items[-1]["content"][0]["text"] += part.text
                self._add(
                    "response.output_text.delta", delta=part.text, logprobs=[], item=True, content=0
                )
        if piece.finish_reason is not None:
            self._reason = piece.finish_reason
            self._close("completed" if piece.finish_reason == "stop" else "incomplete")

    def _open(self, kind: str, **fields: Any) -> None:
        self._close("completed")
        prefix = "msg_" if kind == "message" else "fc_"
        item = {"id": _id(prefix), "type": kind, "status": "in_progress", **fields}
        self._items.append(item)
        self._add("response.output_item.added", item=True, shown=True)

    def _close(self, status: str) -> None:
        """End the last item."""
        if not self._items or self._items[-1]["status"] != "in_progress":
            return
        item = self._items[-1]
        if item["type"] == "message":
            text = item["content"][0]["text"]
            self._add("response.output_text.done", text=text, logprobs=[], item=True, content=0)
            self._add("response.content_part.done", part=_text(text), item=True, content=0)
        else:
            named = {"arguments": item["arguments"], "name": item["name"]}
            self._add("response.function_call_arguments.done", **named, item=True)
        item["status"] = status
        self._add("response.output_item.done", item=True, shown=True)

    def _add(
        self,
        kind: str,
        *,
        item: bool = False,
        shown: bool = False,
        content: int | None = None,
        **fields: Any,
    ) -> None:
        """Add an event, of the last item if `item`, which it shows if `shown`."""
        event: Json = {"type": kind, "sequence_number": self._number, **fields}
        if item:
            last = self._items[-1]
            event |= {"output_index": len(self._items) - 1}
            event |= {"item": _copy(last)} if shown else {"item_id": last["id"]}
        if content is not None:
            event["content_index"] = content
        self._events.append(event)
        self._number += 1

    def _taken(self) -> list[Json]:
        events, self._events = self._events, []
        return events

    def _response(self, head: Mapping[str, Any], usage: Usage | None) -> Json:
        request = self._request
        form = request.text.format if request.text else None
        cut_off = self._reason == "length"
        ended = "incomplete" if cut_off else "completed"
        return {
            "id": head["id"],
            "object": "response",
            "created_at": head["created"],
            "status": "in_progress" if self._reason is None else ended,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if cut_off else None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "metadata": request.metadata or {},
            "model": head["model"],
            "output": [_copy(item) for item in self._items],
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": 1.0 if request.temperature is None else request.temperature,
            "text": {"format": form.model_dump(by_alias=True) if form else {"type": "text"}},
            "tool_choice": request.tool_choice.model_dump()
            if isinstance(request.tool_choice, BaseModel)
            else request.tool_choice or "auto",
            "tools": [tool.model_dump() for tool in request.tools or ()],
            "top_p": 1.0 if request.top_p is None else request.top_p,
            "truncation": "disabled",
            "usage": usage and _usage(usage),
            "user": request.user,
        }


def _usage(usage: Usage) -> Json:
    details = usage.prompt_tokens_details
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": details.cached_tokens if details else 0,
            "cache_write_tokens": 0,
        },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.total_tokens,
    }


def _text(text: str) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _copy(item: Json) -> Json:
    """Return an item as it is now; a message changes with its text."""
    if item["type"] == "message":
        return {**item, "content": [dict(part) for part in item["content"]]}
    return dict(item)


def _id(prefix: str) -> str:
    return prefix + uuid.uuid4().hex
