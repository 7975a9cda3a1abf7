"""Constrain answers to a JSON Schema."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLParserLimits
from llguidance.hf import from_tokenizer

from ochat_ray.errors import UserError
from ochat_ray.serve.engines.base import RequestRefusedError
from ochat_ray.serve.engines.schema_limits import check_counts, is_costly
from ochat_ray.serve.engines.schema_trial import PARAM, SchemaTrial
from ochat_ray.tokenizer import end_of_turn_id, load_tokenizer

COMPILED = 64
COMPILED_BYTES = 256 << 20
"""Number of compiled schemas in the cache (LRU), and approximately their total size in bytes."""

BYTES_PER_CHARACTER = 100
"""Approximate memory of a compiled schema that is not costly."""

_LIMITS = LLParserLimits(
    initial_lexer_fuel=100_000,  # 1,000,000 by default: a nested pattern took 5 s per token
    step_lexer_fuel=100_000,
    max_lexer_states=50_000,
)

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
        self._trial = SchemaTrial(directory)
        self._lock = threading.Lock()
        self._opening = threading.Lock()
        self._compiling: dict[str, threading.Lock] = {}
        self._compiled: OrderedDict[str, _Compiled] = OrderedDict()
        self._refused: OrderedDict[str, RequestRefusedError] = OrderedDict()
        self._tokens: Tokens | None = None

    def grammar(self, schema: str) -> Grammar:
        """Return the initial state for an answer that must match `schema`, a JSON Schema as JSON.

        The first call takes a second, and one with a new schema milliseconds or more: not for an
        event loop's thread. A schema that takes long keeps only those waiting who ask for it, or
        for another costly one.

        Raises:
            RequestRefusedError: The schema, or the model's tokenizer, cannot be compiled.
        """
        with self._lock:
            compiling = self._compiling.setdefault(schema, threading.Lock())
        with compiling:
            try:
                found = self._known(schema) or self._add(schema)
            finally:
                with self._lock:
                    self._compiling.pop(schema, None)
            matcher = found.matcher.deep_copy()
        assert self._tokens is not None
        return Grammar(matcher, self._vocabulary, self._tokens)

    def close(self) -> None:
        """Stop the process that compiles costly schemas first."""
        self._trial.close()

    def _known(self, schema: str) -> _Compiled | None:
        with self._lock:
            if schema in self._refused:
                error = self._refused[schema]
                raise RequestRefusedError(str(error), error.param)
            if schema in self._compiled:
                self._compiled.move_to_end(schema)
            return self._compiled.get(schema)

    def _add(self, schema: str) -> _Compiled:
        with self._opening:
            if self._tokens is None:
                self._tokens = open_tokens(self._directory)
        try:
            made = self._compile(schema)
        except RequestRefusedError as error:
            with self._lock:
                self._refused[schema] = error
                while len(self._refused) > COMPILED:
                    self._refused.popitem(last=False)
            raise
        with self._lock:
            self._compiled[schema] = made
            while len(self._compiled) > COMPILED or (
                len(self._compiled) > 1
                and sum(kept.size for kept in self._compiled.values()) > COMPILED_BYTES
            ):
                self._compiled.popitem(last=False)
        return made

    def _compile(self, schema: str) -> _Compiled:
        assert self._tokens is not None
        size = BYTES_PER_CHARACTER * len(schema)
        try:
            parsed = json.loads(schema)
            check_counts(parsed)
        except (ValueError, RecursionError) as error:
            raise RequestRefusedError(f"json_schema: {error}", PARAM) from error
        if is_costly(schema, parsed):
            size += self._trial.cost(schema)
        return _Compiled(compile_schema(self._tokens, schema), size)


@dataclass(frozen=True, slots=True)
class _Compiled:
    """Matcher of a schema at the start of an answer, and its approximate size in bytes."""

    matcher: Any
    size: int


def open_tokens(directory: str) -> Tokens:
    """Open a model's tokenizer.

    Raises:
        RequestRefusedError: There is none that schemas can be compiled for.
    """
    try:
        tokenizer = load_tokenizer(directory)
        return Tokens(tokenizer, end_of_turn_id(tokenizer))
    except (UserError, ValueError) as error:
        raise RequestRefusedError(f"this model cannot follow a schema: {error}", PARAM) from error


def compile_schema(tokens: Tokens, schema: str) -> Any:
    """Compile a JSON Schema to llguidance's matcher at the start of an answer.

    Raises:
        RequestRefusedError: It cannot be compiled, or no text matches it.
    """
    try:
        source = LLMatcher.grammar_from_json_schema(schema)
    except ValueError as error:
        raise RequestRefusedError(f"json_schema is not JSON: {error}", PARAM) from error
    matcher = LLMatcher(tokens.tokenizer, source, log_level=0, limits=_LIMITS)
    if not matcher.is_error():
        matcher.compute_logit_bias()  # raises some errors, as for a self-reference, only here
    if matcher.is_error():
        problem = f"json_schema cannot be compiled: {_first_line(matcher)}"
        raise RequestRefusedError(problem, PARAM)
    return matcher


def _first_line(matcher: Any) -> str:
    return str(matcher.get_error()).strip().split("\n", 1)[0]
