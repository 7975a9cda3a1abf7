"""Read the responses of an endpoint: chat completions, lists of models, and reasons of failures.

Whatever a server sends becomes a reply of plain text and numbers, or none.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """Answer of an endpoint.

    Attributes:
        text: The answer, without reasoning that the server separates from it.
        finish_reason: `stop`, `length`, `content_filter` or another; empty if there is none.
        prompt_tokens: Tokens of the request.
        completion_tokens: Tokens of the answer and its reasoning.
        logprobs: OpenAI's entries, one per token, if requested.
        reasoning: Reasoning that the server separates from the answer.
        attempts: Requests that were made for this reply.
        changed: Fields that the model refuses: their new names, or None if left out.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    reasoning: str = ""
    attempts: int = 1
    changed: dict[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """Reason of a failed response in one line, and OpenAI's `code` (or `type`) and `param`.

    `status` is the response's, or that of an error within a response of status 200.
    """

    why: str
    status: int
    code: str = ""
    param: str = ""


def encode(body: Mapping[str, Any]) -> bytes:
    """Return a request body as JSON; an unpaired surrogate, which UTF-8 lacks, becomes U+FFFD."""
    return plain_text(json.dumps(body, ensure_ascii=False, separators=(",", ":"))).encode()


def plain_text(text: str) -> str:
    """Return the text with surrogate pairs joined and unpaired ones replaced by U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def visible(text: str) -> str:
    """Return a text on one line, with control and format characters as escapes."""
    line = " ".join(plain_text(text).split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def json_of(response: httpx.Response) -> Any:
    """Return the JSON of a response; its charset is used if it is not UTF-8.

    Bytes that are no text become U+FFFD.

    Raises:
        ValueError, RecursionError: The body is no JSON.
    """
    try:
        text = response.content.decode()
    except UnicodeDecodeError:
        text = response.text
    return json.loads(text.removeprefix("\ufeff"), parse_int=_integer)


def _integer(digits: str) -> float:
    # Python refuses to convert integers of over 4,300 digits.
    return int(digits) if len(digits) < 1_000 else math.inf


def read_reply(response: httpx.Response) -> Reply | None:
    """Parse a chat completion; None if the body is another one or truncated."""
    try:
        body = json_of(response)
        choice, usage = body["choices"][0], body.get("usage")
        message = choice["message"]
        text, reasoning = _content(message.get("content"))
        text = text or _content(message.get("refusal"))[0]
        for name in ("reasoning_content", "reasoning"):
            reasoning = reasoning or "".join(_content(message.get(name)))
        finish_reason = choice.get("finish_reason")
        logprobs = choice.get("logprobs")
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return None
    if finish_reason == "error":
        return None
    usage = usage if isinstance(usage, dict) else {}
    return Reply(
        text=plain_text(text),
        finish_reason=plain_text(finish_reason) if isinstance(finish_reason, str) else "",
        prompt_tokens=_count(usage.get("prompt_tokens")),
        completion_tokens=_count(usage.get("completion_tokens")),
        logprobs=read_logprobs(logprobs.get("content") if isinstance(logprobs, dict) else None),
        reasoning=plain_text(reasoning),
    )


def _content(value: Any) -> tuple[str, str]:
    """Return text and reasoning of a message's content: a text, a list of parts, or null."""
    if isinstance(value, str):
        return value, ""
    if isinstance(value, list):
        parts = [_content(part) for part in value]
        return "".join(text for text, _ in parts), "".join(reasoning for _, reasoning in parts)
    if isinstance(value, dict):
        if "think" in str(value.get("type")) or "reason" in str(value.get("type")):
            names = ("thinking", "reasoning", "text", "content", "summary")
            return "", "".join("".join(_content(value.get(name))) for name in names)
        return _content(value.get("text", value.get("content")))
    return ("" if value is None else str(value)), ""


def _count(value: Any) -> int:
    """Return a number of tokens; 0 for anything else."""
    good = isinstance(value, int | float) and math.isfinite(value) and value > 0
    return min(int(value), 2**53) if good else 0


def read_logprobs(entries: Any) -> list[dict[str, Any]]:
    """Return the well-formed entries of log-probabilities."""
    found = []
    for entry in entries if isinstance(entries, list) else []:
        top = entry.get("top_logprobs") if isinstance(entry, dict) else None
        found.append(
            {
                "token": plain_text(str(entry.get("token"))) if isinstance(entry, dict) else "",
                "top_logprobs": [
                    {"token": plain_text(one["token"]), "logprob": min(float(one["logprob"]), 0.0)}
                    for one in (top if isinstance(top, list) else [])
                    if isinstance(one, dict)
                    and isinstance(one.get("token"), str)
                    and isinstance(one.get("logprob"), int | float)
                    and not math.isnan(one["logprob"])
                ],
            }
        )
    return found


def read_models(response: httpx.Response) -> list[dict[str, Any]]:
    """Return the entries of a list of models; empty for any other body."""
    try:
        entries = json_of(response)["data"]
        return [entry for entry in entries if isinstance(entry, dict)]
    except (ValueError, TypeError, KeyError, RecursionError):
        return []


def is_page(response: httpx.Response) -> bool:
    """Return whether the response is a web page, as of a wrong URL or a sign-in."""
    return "text/html" in response.headers.get("content-type", "")


def is_stream(response: httpx.Response) -> bool:
    """Return whether the response is a stream of events, which was not asked for."""
    return "text/event-stream" in response.headers.get("content-type", "") or (
        response.text.lstrip().startswith("data: ")
    )


def failure_of(response: httpx.Response) -> Failure:
    """Describe a failed response, without the request, which may be confidential."""
    status = response.status_code
    try:
        body = json_of(response)
    except (ValueError, RecursionError):
        body = "a web page" if is_page(response) else response.text[:2000]
        if status == 200 and not is_page(response):
            body = f"no JSON: {body}"
    outer = body if isinstance(body, dict) else {}
    # MiniMax has `base_resp`.
    inner = [outer[name] for name in ("error", "base_resp") if isinstance(outer.get(name), dict)]
    fields = (inner or [outer])[0]
    names = [str(fields.get(name) or "") for name in ("code", "type", "status_code")]
    if status == 200 and inner and re.fullmatch("[45][0-9][0-9]", names[0]):
        status = int(names[0])
    default = "no chat completion" if response.status_code == 200 else response.reason_phrase
    text = _reason(inner or body) or default
    return Failure(
        why=visible(f"{response.status_code} {text[:2000]}")[:300],
        status=status,
        code=" ".join(names),
        param=str(fields.get("param") or _named_field(text)),
    )


def _reason(body: Any) -> str:
    """Return the reason in an error body: OpenAI's, FastAPI's, vLLM's, or plain text."""
    if isinstance(body, str):
        return body
    if isinstance(body, list):
        return "; ".join(filter(None, map(_reason, body[:3])))
    if not isinstance(body, dict):
        return ""
    names = ("error", "message", "detail", "msg", "errors", "title", "reason", "status_msg")
    for name in names:
        if found := _reason(body.get(name)):
            where = body.get("loc")
            place = ".".join(map(str, where)) + ": " if isinstance(where, list) else ""
            return place + found
    return ""


def _named_field(text: str) -> str:
    """Return the first field of a request that a reason names."""
    found = re.search(r"\b(max_tokens|max_completion_tokens|temperature|top_p)\b", text)
    return found[1] if found else ""
