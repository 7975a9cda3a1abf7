"""Use the endpoint with the official client; arguments: chat stream several schema errors."""

from __future__ import annotations

import json
import os
import sys

import openai

client = openai.OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "none"),
    max_retries=3,  # the client honours the Retry-After of 429 and 503
)
MODEL = client.models.list().data[0].id
QUESTION = {"role": "user", "content": "What is the sea?"}


def chat() -> None:
    """Request a complete answer."""
    answer = client.chat.completions.create(model=MODEL, messages=[QUESTION], max_tokens=60)
    print(answer.choices[0].message.content)
    print(f"{answer.usage.completion_tokens} tokens, {answer.choices[0].finish_reason}")


def stream() -> None:
    """Stream an answer. Leaving the `with` block early stops its generation."""
    with client.chat.completions.create(
        model=MODEL,
        messages=[QUESTION],
        max_tokens=60,
        stream=True,
        stream_options={"include_usage": True},
    ) as events:
        for event in events:
            for choice in event.choices:
                print(choice.delta.content or "", end="", flush=True)
            if event.usage:
                print(f"\n{event.usage.completion_tokens} tokens")


def several() -> None:
    """Request several answers to one prompt."""
    answers = client.chat.completions.create(
        model=MODEL, messages=[QUESTION], max_tokens=60, n=3, temperature=1, seed=1
    )
    for choice in answers.choices:
        print(f"{choice.index}: {choice.message.content}")


def schema() -> None:
    """Request an answer that must match a JSON schema."""
    city = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "inhabitants": {"type": "integer"}},
        "required": ["name", "inhabitants"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Name a city by the sea."}],
        max_tokens=200,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "city", "schema": city, "strict": True},
        },
    )
    choice = answer.choices[0]
    # An answer that reached its token limit is truncated and not valid JSON.
    print(json.loads(choice.message.content) if choice.finish_reason == "stop" else "cut off")


def errors() -> None:
    """Show that every error is one of the client's own exception classes."""
    try:
        client.chat.completions.create(model="no-such-model", messages=[QUESTION])
    except openai.NotFoundError as error:
        print(f"{error.status_code} {error.code}: {error.body['message']}")
    try:
        client.chat.completions.create(model=MODEL, messages=[QUESTION], temperature=9)
    except openai.BadRequestError as error:
        print(f"{error.status_code} {error.param}: {error.body['message']}")


STEPS = {step.__name__: step for step in (chat, stream, several, schema, errors)}

if __name__ == "__main__":
    for name in sys.argv[1:] or STEPS:
        print(f"--- {name}")
        STEPS[name]()
