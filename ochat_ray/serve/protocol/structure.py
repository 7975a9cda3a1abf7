"""Request fields that constrain the answer to a format.

Source: OpenAI's API reference for `response_format`; vLLM's documentation of structured outputs
(`structured_outputs`, and `guided_json`, `guided_regex`, `guided_choice`, `guided_grammar` in its
earlier versions).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Annotated, Any, TypedDict

import orjson
from llguidance import regex_to_lark
from pydantic import AfterValidator, Field, model_validator

from ochat_ray.serve.engines.schema_limits import check_counts
from ochat_ray.serve.protocol.fields import (
    JsonObjectFormat,
    JsonSchemaFormat,
    Strict,
    Text,
    TextFormat,
    writable,
)
from ochat_ray.serve.protocol.neutral import STRUCTURED_OUTPUTS
from ochat_ray.serve.protocol.tools import CallRules

JSON_OBJECT = '{"type":"object"}'

MOST_CHOICES = 1024
LONGEST_CHOICE = 1024
LONGEST_GRAMMAR = 1 << 14
"""Limits on `choice`, in strings and characters, and on `regex` and `grammar`, in characters."""


class Constraint(TypedDict, total=False):
    """Arguments of `Sampling` that constrain the answer; at most one."""

    json_schema: str
    grammar: str
    calls: CallRules


def _schema(value: Any) -> str:
    """Return a schema, or the JSON of one, as JSON."""
    if isinstance(value, str):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError as error:
            raise ValueError(f"is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError("should be a JSON Schema, as an object or as its JSON")
    return orjson.dumps(writable(value)).decode()


def _repeats_little(text: str) -> str:
    check_counts({"pattern": text})
    return text


def _lark_of_choices(choices: Iterable[str]) -> str:
    return "start: " + " | ".join(json.dumps(choice) for choice in choices)


_Schema = Annotated[dict[str, Any] | str, AfterValidator(_schema)]
_Regex = Annotated[
    Text, Field(min_length=1, max_length=LONGEST_GRAMMAR), AfterValidator(_repeats_little)
]
_Choices = Annotated[
    list[Annotated[Text, Field(min_length=1, max_length=LONGEST_CHOICE)]],
    Field(min_length=1, max_length=MOST_CHOICES, fail_fast=True),
]


class StructuredOutputs(Strict):
    """vLLM's `structured_outputs`: at most one constraint."""

    NEUTRAL = STRUCTURED_OUTPUTS

    json_: _Schema | None = Field(None, alias="json", description="JSON Schema")
    json_object: bool | None = None
    regex: _Regex | None = None
    choice: _Choices | None = None
    grammar: _Regex | None = Field(None, description="Lark in llguidance's syntax, or GBNF")

    @model_validator(mode="after")
    def _one(self) -> StructuredOutputs:
        if len(self.given) > 1:
            raise ValueError("give one of json, json_object, regex, choice and grammar")
        return self

    @property
    def given(self) -> list[str]:
        """Names of the constraints that are given."""
        values = {
            "json": self.json_,
            "json_object": self.json_object or None,
            "regex": self.regex,
            "choice": self.choice,
            "grammar": self.grammar,
        }
        return [name for name, value in values.items() if value is not None]


class StructuredFields(Strict):
    """Fields that constrain the answer to a format."""

    response_format: (
        Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]
        | None
    ) = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: _Schema | None = None
    guided_regex: _Regex | None = None
    guided_choice: _Choices | None = None
    guided_grammar: _Regex | None = None

    @model_validator(mode="after")
    def _one_constraint(self) -> StructuredFields:
        if len(fields := self._constraining) > 1:
            raise ValueError(f"{fields[1]}: not with {fields[0]}, which constrains the answer, too")
        return self

    @property
    def constraint_field(self) -> str | None:
        """Name of the field that constrains the answer."""
        return next(iter(self._constraining), None)

    @property
    def _constraining(self) -> list[str]:
        fields = [] if self.response_format is None else ["response_format"]
        if isinstance(self.response_format, TextFormat):
            fields = []
        outputs = self.structured_outputs
        fields += [f"structured_outputs.{name}" for name in outputs.given] if outputs else []
        guided = ("guided_json", "guided_regex", "guided_choice", "guided_grammar")
        return fields + [name for name in guided if getattr(self, name) is not None]

    @property
    def constraint(self) -> Constraint:
        """The constraint as arguments of `Sampling`; regex and choices become grammars."""
        form, outputs = self.response_format, self.structured_outputs
        if isinstance(form, JsonSchemaFormat):
            return {"json_schema": orjson.dumps(form.json_schema.schema_).decode()}
        if isinstance(form, JsonObjectFormat) or (outputs and outputs.json_object):
            return {"json_schema": JSON_OBJECT}
        schema = (outputs and outputs.json_) or self.guided_json
        if schema is not None:
            assert isinstance(schema, str)
            return {"json_schema": schema}
        if regex := (outputs and outputs.regex) or self.guided_regex:
            return {"grammar": f"start: /{regex_to_lark(regex)}/"}
        if choices := (outputs and outputs.choice) or self.guided_choice:
            return {"grammar": _lark_of_choices(choices)}
        if grammar := (outputs and outputs.grammar) or self.guided_grammar:
            return {"grammar": grammar}
        return {}
