"""Checks of single option values of `jobs/evaluate.py`."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlsplit

from ochat_ray.errors import UserError


def parse_body(option: str, text: str) -> dict[str, Any]:
    """Parse further fields of a request.

    Raises:
        UserError: The text is no JSON object, or has fields that are not further ones.
    """
    try:
        fields = json.loads(text or "{}", parse_constant=_reject)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{option} {text[:200]}: no JSON: {error}") from error
    if not isinstance(fields, dict) or set(fields) & {"messages", "model", "stream", "n"}:
        raise UserError(
            f"{option} {text[:200]}: a JSON object is needed, without messages, model, stream and n"
        )
    return fields


def _reject(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def check_url(option: str, url: str) -> None:
    """Check a base URL; an empty one is not given.

    Raises:
        UserError: It is not of the form `http://HOST:PORT/v1`.
    """
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number or above 65535, or a broken IPv6 address
        parts, known = urlsplit(""), False
    # What is not shown may be a secret.
    shown = repr(url if "@" not in url and "?" not in url else url.partition("://")[0] + "://...")
    if url and "@" in url.partition("?")[0]:
        raise UserError(
            f"{option} {shown} has a user or password, which would be printed and stored; give the "
            "key in the endpoint's environment variable"
        )
    if url and (not known or url != url.strip()):
        raise UserError(
            f"{option} {shown} is no URL of an endpoint; give one such as http://127.0.0.1:8000/v1"
        )
    if url and (parts.query or parts.fragment or parts.path.rstrip("/").endswith("/completions")):
        raise UserError(
            f"{option} {shown}: give the base URL, to which /chat/completions is appended, without "
            "a query (Azure: https://NAME.openai.azure.com/openai/v1; a key belongs in the "
            "endpoint's environment variable)"
        )
