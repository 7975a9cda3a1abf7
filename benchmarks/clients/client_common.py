"""Calls of a client and their results. Imports nothing of the project."""

from __future__ import annotations

import asyncio
import inspect
import json
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

LOOP = asyncio.new_event_loop()
"""For all asynchronous calls: clients keep connections, which belong to a loop."""

asyncio.set_event_loop(LOOP)

MODEL = "tiny"
QUESTION: list[Any] = [{"role": "user", "content": "What is the sea?"}]
LONG = "word " * 20_000
CITIES = ("Bonn", "Paris")
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"enum": list(CITIES)}, "days": {"type": "integer"}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
FUNCTION: dict[str, Any] = {"name": "weather", "description": "Weather.", "parameters": SCHEMA}
TOOL: dict[str, Any] = {"type": "function", "function": FUNCTION}
FORMAT: dict[str, Any] = {
    "type": "json_schema",
    "json_schema": {"name": "weather", "schema": SCHEMA, "strict": True},
}


@dataclass(frozen=True)
class Server:
    """Address of the server, with /v1, and the directory of its model."""

    url: str
    model_directory: str

    @property
    def root(self) -> str:
        return self.url.removesuffix("/v1")

    def has(self, path: str) -> bool:
        with urllib.request.urlopen(f"{self.root}/openapi.json") as response:  # noqa: S310
            return path in json.load(response)["paths"]


@dataclass(frozen=True)
class Rejected:
    """Call that asks for something the server does not have, and the field that is named."""

    param: str
    call: Callable[[], Any]


Calls = dict[str, Callable[[], Any] | Rejected]


def valid(value: Any) -> None:
    """Check arguments, or an answer, of `SCHEMA`: a mapping, its JSON or a model."""
    if isinstance(value, str):
        value = json.loads(value)
    if not isinstance(value, Mapping):
        value = value.model_dump()
    assert value["city"] in CITIES, value
    assert isinstance(value["days"], int), value


def raises(error: type[BaseException], call: Callable[[], Any], text: str = "") -> None:
    """Check that a call raises this error."""
    caught: BaseException | None = None
    try:
        call()
    except error as raised:
        caught = raised
    assert caught is not None, f"did not raise {error.__name__}"
    found = f"{getattr(caught, 'code', '')} {caught}"
    assert text in found, found


def weather_class() -> Any:
    """Return `SCHEMA` as a pydantic model, which this environment has."""
    from pydantic import BaseModel

    class Weather(BaseModel):
        """Weather in a city."""

        city: Literal["Bonn", "Paris"]
        days: int

    # The tiny model hardly ever writes capitals.
    Weather.__name__ = "forecast"
    return Weather


def run(call: Callable[[], Any] | Rejected) -> str:
    """Return the result of a call."""
    wanted = call.param if isinstance(call, Rejected) else None
    made = call.call if isinstance(call, Rejected) else call
    try:
        if inspect.isawaitable(found := made()):
            LOOP.run_until_complete(found)
    except Exception as error:  # noqa: BLE001 - any failure is a result
        text = " ".join(f"{type(error).__name__}: {error}".split())
        if wanted is not None and wanted in text:
            return f"rejected by name: {text.rpartition(' 400 - ')[2]}"
        return f"FAILS: {text[-600:]}"
    return "works" if wanted is None else f"FAILS: {wanted} was not rejected"
