"""OpenAI error bodies, `{"error": {message, type, param, code}}`, and the map from exceptions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from ochat_ray.errors import UserError
from ochat_ray.serve.engines.base import (
    EngineError,
    EngineOverloadedError,
    EngineUnavailableError,
    RequestRefusedError,
)

ErrorType = Literal[
    "invalid_request_error",
    "authentication_error",
    "permission_error",
    "not_found_error",
    "rate_limit_error",
    "server_error",
]

_TYPES: Mapping[int, ErrorType] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class ErrorDetail(BaseModel):
    """Error details. `param` names the field, `code` is for programs."""

    message: str
    type: ErrorType
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Body of every unsuccessful response."""

    error: ErrorDetail


class ApiError(Exception):
    """Error with its HTTP status, which is used unless a stream has begun."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = dict(headers or {})

    def body(self) -> dict[str, object]:
        """Return the JSON body, which is also the event that ends a broken stream."""
        kind: ErrorType = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": self.message,
                "type": _TYPES.get(self.status, kind),
                "param": self.param,
                "code": self.code,
            }
        }


def error_response(error: ApiError) -> JSONResponse:
    """Return the error as an HTTP response."""
    return JSONResponse(error.body(), status_code=error.status, headers=error.headers)


def to_api_error(error: BaseException) -> ApiError:
    """Map an exception to the error for the client.

    An unknown exception becomes a 500 without its text, which may be confidential.
    """
    match error:
        case ApiError():
            return error
        case EngineOverloadedError():
            return ApiError(
                429,
                "the server is at capacity; try again later",
                code="overloaded",
                headers={"Retry-After": "1"},
            )
        case EngineUnavailableError():
            return ApiError(
                503,
                "no model replica is ready; try again later",
                code="not_ready",
                headers={"Retry-After": "2"},
            )
        case TimeoutError():
            return ApiError(
                503,
                "the answer took longer than this server allows",
                code="deadline_exceeded",
                headers={"Retry-After": "1"},
            )
        case RequestRefusedError():
            return ApiError(400, str(error), code="invalid_request", param=error.param)
        case UserError():
            return ApiError(400, str(error), code="invalid_request")
        case EngineError():
            return ApiError(500, str(error), code="engine_error")
        case _:
            return ApiError(500, "internal error", code="internal_error")


def validation_error(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """Convert the most specific of pydantic's errors to a 400 that names the field."""
    first = errors[0]
    if first["type"] == "json_invalid":
        return ApiError(400, "the request body is not valid JSON", code="invalid_json")
    # What is not supported explains what else is wrong, such as tool calls in place of content.
    first = next((error for error in errors if error["type"] == "extra_forbidden"), first)
    # A value that fits no branch of a union has errors of all branches: the one that was meant is
    # the one that got furthest.
    path = _path(first)
    for error in errors[1:]:
        other = _path(error)
        if len(other) > len(path) and other[: len(path)] == path:
            first, path = error, other
    param = ".".join(path) or None
    if first["type"] == "extra_forbidden":
        return ApiError(
            400, f"unsupported field: {param!r}", code="unsupported_parameter", param=param
        )
    message = str(first["msg"]).removeprefix("Value error, ")
    # A rule over several fields starts its message with the field: "field: text".
    field, _, text = message.partition(": ")
    if first["type"] == "value_error" and text and re.fullmatch(r"[a-z0-9_.]+", field):
        param, message = ".".join(filter(None, (param, field))), text
    return ApiError(400, f"{param or 'request body'}: {message}", code="invalid_value", param=param)


def _path(error: Mapping[str, Any]) -> list[str]:
    path = [str(part) for part in error["loc"] if part != "body" and not _union_tag(part)]
    # The tag of a discriminated union stands before its own fields.
    return path[:1] + path[2:] if path[:1] in (["response_format"], ["tool_choice"]) else path


def _union_tag(part: object) -> bool:
    # pydantic includes the attempted branch of a union in the path: "str", "list[TextPart]".
    return isinstance(part, str) and (part in ("str", "int", "float") or "[" in part)


def add_error_handlers(app: FastAPI) -> None:
    """Answer every exception with an error body."""

    def told(request: Request, error: ApiError) -> Response:
        record = getattr(request.state, "record", None)
        if record is not None:
            record.code = error.code
        return error_response(error)

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        if isinstance(error.body, bytes):  # FastAPI parses what is sent as JSON
            sent = request.headers.get("content-type")
            found = f"not {sent!r}" if sent else "which is missing"
            text = f"the request needs the header `Content-Type: application/json`, {found}"
            return told(request, ApiError(415, text, code="unsupported_media_type"))
        return told(request, validation_error(error.errors()))

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
        return told(
            request,
            ApiError(error.status_code, str(error.detail), code=code, headers=error.headers),
        )

    async def other(request: Request, error: Exception) -> Response:
        return told(request, to_api_error(error))

    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    for kind in (ApiError, EngineError, UserError, TimeoutError, Exception):
        app.add_exception_handler(kind, other)
