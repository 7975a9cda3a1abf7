"""Use the endpoint with plain httpx: parse server-sent events, and retry with backoff.

A broken stream cannot be resumed: the request is sent again from the beginning, and only if no part
of the answer was shown yet.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Iterator

import httpx

URL = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1")
KEY = os.environ.get("OPENAI_API_KEY", "none")
TRIES = 5
COME_BACK = {429, 503}  # at capacity; no replica yet


def main() -> None:
    """Ask one question and print the answer as it streams."""
    # Prefilling a long prompt may take a while before the first event.
    timeout = httpx.Timeout(10, read=120)
    with httpx.Client(headers={"Authorization": f"Bearer {KEY}"}, timeout=timeout) as client:
        models = client.get(f"{URL}/models")
        models.raise_for_status()
        body = {
            "model": models.json()["data"][0]["id"],
            "messages": [{"role": "user", "content": "What is the sea?"}],
            "max_tokens": 60,
            "stream": True,
        }
        for text in answer(client, body):
            print(text, end="", flush=True)
        print()


def answer(client: httpx.Client, body: dict[str, object]) -> Iterator[str]:
    """Yield the pieces of the answer, retrying on rate limits and connection errors."""
    for tries_left in reversed(range(TRIES)):
        shown = False
        try:
            with client.stream("POST", f"{URL}/chat/completions", json=body) as response:
                if response.status_code in COME_BACK and tries_left:
                    wait_s = float(response.headers.get("Retry-After", "1"))
                    # With jitter: all rejected clients got the same Retry-After.
                    time.sleep(wait_s + random.random())
                    continue
                if response.status_code != 200:
                    response.read()
                    raise SystemExit(f"{response.status_code}: {message(response.json())}")
                for event in events(response):
                    for choice in event["choices"]:
                        shown = True
                        yield choice["delta"].get("content") or ""
                return
        except httpx.TransportError as error:
            if shown or not tries_left:
                raise SystemExit(f"the connection broke: {error}") from error
            time.sleep(1 + random.random())


def events(response: httpx.Response) -> Iterator[dict]:
    """Yield the JSON of each event, up to `[DONE]`, without which the stream broke."""
    for line in response.iter_lines():
        if not line.startswith("data: "):
            continue
        data = line.removeprefix("data: ")
        if data == "[DONE]":
            return
        event = json.loads(data)
        if "error" in event:
            raise SystemExit(message(event))
        yield event
    raise httpx.ReadError("the stream ended before [DONE]")


def message(body: dict) -> str:
    """Return the message of an error body, on one line."""
    return body["error"]["message"]


if __name__ == "__main__":
    main()
