"""Which tokens keep an answer within a JSON Schema."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

import numpy as np
from llguidance import LLMatcher
from llguidance.hf import from_tokenizer

from ochat_ray.errors import UserError
from ochat_ray.serve.engines.base import RequestRefusedError
from ochat_ray.tokenizer import end_of_turn_id, load_tokenizer

COMPILED = 64
"""Schemas that stay compiled, the most recently used."""

PARAM = "response_format"

WHITESPACE = r"[\x20\x0A\x0D\x09]{1,20}"
"""What may stand between two JSON tokens. Without a bound a small model can go on for ever."""


class Grammar:
    """One answer's way through its schema."""

    def __init__(self, matcher: Any, vocabulary: int, end_id: int) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._end_id = end_id

    def allowed(self, stop_ids: tuple[int, ...]) -> np.ndarray:
        """Of every id of the model's vocabulary, whether it may come next: bool, [vocabulary].

        Special tokens may not, nor ids that no token has. A stop id may if the text is complete.
        """
        allowed = np.zeros(self._vocabulary, dtype=bool)
        mask = np.frombuffer(self._matcher.compute_logit_bias(), dtype=np.uint8)[: allowed.size]
        allowed[: mask.size] = mask
        allowed[[self._end_id, *stop_ids]] = False
        if self._matcher.is_accepting():
            allowed[list(stop_ids)] = True
        self._check()
        return allowed

    def advance(self, token_id: int) -> None:
        """Go on behind a token that was allowed.

        Raises:
            ValueError: it was not.
        """
        self._matcher.consume_token(token_id)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ValueError(f"outside the JSON schema: {_first_line(self._matcher)}")


class Grammars:
    """Compiles schemas for one model's tokenizer, which is opened when the first one comes."""

    def __init__(self, directory: str, vocabulary: int) -> None:
        self._directory = directory
        self._vocabulary = vocabulary
        self._lock = threading.Lock()
        self._compiled: OrderedDict[str, Any] = OrderedDict()
        self._tokenizer: Any = None
        self._end_id = -1

    def grammar(self, schema: str) -> Grammar:
        """The start of an answer that must match `schema`, a JSON Schema as JSON.

        The first call takes a second, and one with a new schema milliseconds or more: not for an
        event loop's thread.

        Raises:
            RequestRefusedError: the schema, or the model's tokenizer, is none that can be compiled.
        """
        with self._lock:
            if schema not in self._compiled:
                self._compiled[schema] = self._compile(schema)
                if len(self._compiled) > COMPILED:
                    self._compiled.popitem(last=False)
            self._compiled.move_to_end(schema)
            matcher = self._compiled[schema].deep_copy()
        return Grammar(matcher, self._vocabulary, self._end_id)

    def _compile(self, schema: str) -> Any:
        if self._tokenizer is None:
            try:
                tokenizer = load_tokenizer(self._directory)
                self._end_id = end_of_turn_id(tokenizer)
                self._tokenizer = from_tokenizer(tokenizer, eos_token=self._end_id)
            except (UserError, ValueError) as error:
                raise RequestRefusedError(
                    f"this model cannot follow a schema: {error}", PARAM
                ) from error
        try:
            source = LLMatcher.grammar_from_json_schema(
                schema, overrides={"whitespace_pattern": WHITESPACE}
            )
        except ValueError as error:
            raise RequestRefusedError(f"json_schema is not JSON: {error}", PARAM) from error
        matcher = LLMatcher(self._tokenizer, source, log_level=0)
        if matcher.is_error():
            problem = f"json_schema cannot be compiled: {_first_line(matcher)}"
            raise RequestRefusedError(problem, PARAM)
        return matcher


def _first_line(matcher: Any) -> str:
    return str(matcher.get_error()).strip().split("\n", 1)[0]
