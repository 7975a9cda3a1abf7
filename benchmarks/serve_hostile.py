"""Requests with which one user could hurt others: for serve_bystander.py and serve_soak.py."""

from __future__ import annotations

import json
from typing import Any

QUESTION = [{"role": "user", "content": "What is the sea?"}]


def chat(**fields: Any) -> bytes:
    return json.dumps({"model": "soak", "messages": QUESTION, "max_tokens": 8, **fields}).encode()


def schema(content: Any) -> bytes:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": content}}
    return chat(response_format=wanted, max_tokens=50)


def nested(depth: int) -> dict[str, Any]:
    inner: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        inner = {"type": "array", "items": inner, "maxItems": 2000}
    return inner


HOSTILE: dict[str, bytes] = {
    "minItems of a billion": schema({"type": "array", "minItems": 10**9}),
    "minItems of 2,000, nested": schema(nested(4)),
    "multipleOf of a large prime": schema({"type": "integer", "multipleOf": 1000003}),
    "a pattern that explodes": schema({"type": "string", "pattern": "^(((a{40}){40}){40}b?)*$"}),
    "$ref to itself": schema({"$ref": "#"}),
    "an enum of 20,000": schema({"enum": [f"value {n}" for n in range(20_000)]}),
    "2 MB of numbers for messages": b'{"model": "soak", "messages": [' + b"1," * 900_000 + b"1]}",
    "2 MB of unknown fields": json.dumps({f"f{n}": n for n in range(120_000)}).encode(),
    "2 MB of nested lists": b'{"model": "soak", "messages": ' + b"[" * 10**6 + b"]" * 10**6 + b"}",
    "2 MB of text": chat(messages=[{"role": "user", "content": "word " * 400_000}]),
    "35,000 messages": chat(messages=QUESTION * 35_000),
    "a logit_bias of 100,000": chat(logit_bias={str(n): 1 for n in range(100_000)}),
    "n of 128 with 20 log-probabilities": chat(n=128, logprobs=True, top_logprobs=20),
    "32 stops of 256 characters": chat(stop=["x" * 255 + chr(65 + n) for n in range(32)]),
    "a body that is not JSON": b"{" * 1_000_000,
}
