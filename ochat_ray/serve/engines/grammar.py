"""Constrain answers to a JSON Schema."""

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
"""Number of compiled schemas in the cache (LRU)."""

PARAM = "response_format"

LONGEST_RUN = 20
"""Maximum length of whitespace between JSON tokens, and of digit runs; one token may exceed it.

Without a limit a small model may repeat them up to `max_tokens`, so that the text is truncated
before it is valid (vLLM issue 38696). llguidance 1.7.6 has no limit: it repeats a
`whitespace_pattern` any number of times. Forbidding whitespace would be no better: a model that
wants to write `[` and a newline would close the array instead.
"""

_BLANK, _DIGIT, _OTHER = range(3)
_KINDS = {**dict.fromkeys(b" \t\n\r", _BLANK), **dict.fromkeys(b"0123456789", _DIGIT)}


class Tokens:
    """Tokenizer for llguidance, with the bytes of each id and the class of their first byte."""

    def __init__(self, tokenizer: Any, end_id: int) -> None:
        self.tokenizer = from_tokenizer(tokenizer, eos_token=end_id)
        self.end_id = end_id
        self.bytes = [self.tokenizer.decode_bytes([i]) for i in range(self.tokenizer.vocab_size)]
        self.kinds = np.array(
            [_KINDS.get(spelt[0], _OTHER) if spelt else _OTHER for spelt in self.bytes]
        )


class _Run:
    """Run of spaces or digits at the end of a JSON text, outside its strings."""

    def __init__(self) -> None:
        self.kind, self.length = _OTHER, 0
        self._quoted = self._escaped = False

    def extend(self, text: bytes) -> None:
        for byte in text:
            if self._quoted:
                self._quoted = self._escaped or byte != ord('"')
                self._escaped = not self._escaped and byte == ord("\\")
            else:
                self._quoted = byte == ord('"')
                kind = _KINDS.get(byte, _OTHER)
                self.length = self.length + 1 if kind == self.kind else 1
                self.kind = kind

    @property
    def is_full(self) -> bool:
        return self.kind != _OTHER and self.length >= LONGEST_RUN


class Grammar:
    """State of one answer within its schema."""

    def __init__(self, matcher: Any, vocabulary: int, tokens: Tokens) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._tokens = tokens
        self._run = _Run()

    def allowed(self, stop_ids: tuple[int, ...]) -> np.ndarray:
        """Return a mask of the ids that may come next: bool, [vocabulary].

        Special tokens and unused ids are not allowed. A stop id is allowed if the text is complete.
        """
        allowed = np.zeros(self._vocabulary, dtype=bool)
        mask = np.frombuffer(self._matcher.compute_logit_bias(), dtype=np.uint8)[: allowed.size]
        allowed[: mask.size] = mask
        if self._run.is_full:
            within = np.flatnonzero(allowed)
            longer = within[self._tokens.kinds[within] == self._run.kind]
            if longer.size < within.size:  # otherwise the schema requires such a number
                allowed[longer] = False
        allowed[[self._tokens.end_id, *stop_ids]] = False
        if self._matcher.is_accepting():
            allowed[list(stop_ids)] = True
        self._check()
        return allowed

    def advance(self, token_id: int) -> None:
        """Advance by an allowed token.

        Raises:
            ValueError: The token was not allowed.
        """
        self._matcher.consume_token(token_id)
        self._check()
        self._run.extend(self._tokens.bytes[token_id])

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ValueError(f"outside the JSON schema: {_first_line(self._matcher)}")


class Grammars:
    """Compiler of schemas for one model's tokenizer, which is opened on first use."""

    def __init__(self, directory: str, vocabulary: int) -> None:
        self._directory = directory
        self._vocabulary = vocabulary
        self._lock = threading.Lock()
        self._compiled: OrderedDict[str, Any] = OrderedDict()
        self._tokens: Tokens | None = None

    def grammar(self, schema: str) -> Grammar:
        """Return the initial state for an answer that must match `schema`, a JSON Schema as JSON.

        The first call takes a second, and one with a new schema milliseconds or more, so do not
        call it on an event loop's thread.

        Raises:
            RequestRefusedError: The schema, or the model's tokenizer, cannot be compiled.
        """
        with self._lock:
            if schema not in self._compiled:
                self._compiled[schema] = self._compile(schema)
                if len(self._compiled) > COMPILED:
                    self._compiled.popitem(last=False)
            self._compiled.move_to_end(schema)
            matcher = self._compiled[schema].deep_copy()
            assert self._tokens is not None
        return Grammar(matcher, self._vocabulary, self._tokens)

    def _compile(self, schema: str) -> Any:
        if self._tokens is None:
            try:
                tokenizer = load_tokenizer(self._directory)
                self._tokens = Tokens(tokenizer, end_of_turn_id(tokenizer))
            except (UserError, ValueError) as error:
                raise RequestRefusedError(
                    f"this model cannot follow a schema: {error}", PARAM
                ) from error
        try:
            source = LLMatcher.grammar_from_json_schema(schema)
        except ValueError as error:
            raise RequestRefusedError(f"json_schema is not JSON: {error}", PARAM) from error
        matcher = LLMatcher(self._tokens.tokenizer, source, log_level=0)
        if matcher.is_error():
            problem = f"json_schema cannot be compiled: {_first_line(matcher)}"
            raise RequestRefusedError(problem, PARAM)
        return matcher


def _first_line(matcher: Any) -> str:
    return str(matcher.get_error()).strip().split("\n", 1)[0]
