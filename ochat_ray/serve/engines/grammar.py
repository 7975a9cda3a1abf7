"""Constrain answers to a JSON Schema or a grammar."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from llguidance import LLMatcher, LLParserLimits
from llguidance.gbnf_to_lark import GbnfToLarkError, any_to_lark
from llguidance.hf import from_tokenizer

from ochat_ray.errors import UserError
from ochat_ray.models.model_directory import local_directory
from ochat_ray.serve.engines.base import RequestRefusedError, Sampling
from ochat_ray.serve.engines.schema_limits import check_counts, is_costly
from ochat_ray.serve.engines.schema_trial import PARAM, SchemaTrial
from ochat_ray.serve.protocol.tools import CLOSE, OPEN, TEXT_TOKENS
from ochat_ray.serve.served_model import open_served_tokenizer
from ochat_ray.tokenization.tokenizer import end_of_turn_id

COMPILED = 64
COMPILED_BYTES = 256 << 20
"""Number of compiled schemas and grammars in the cache (LRU), and approximately their total size in
bytes."""

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


SourceKind = Literal["json_schema", "grammar", "calls", "calls or JSON"]


@dataclass(frozen=True, slots=True)
class Source:
    """Text of a JSON Schema, as JSON, or of a grammar, in llguidance's Lark syntax or GBNF.

    The grammars of calls of tools, or of calls or JSON, are kinds of their own.
    """

    kind: SourceKind
    text: str


def source_of(sampling: Sampling) -> Source | None:
    """Return what constrains the answer of a request."""
    if sampling.json_schema is not None:
        return Source("json_schema", sampling.json_schema)
    if sampling.calls is not None:
        kind: SourceKind = "calls or JSON" if sampling.calls.or_json else "calls"
        both = sampling.calls.lark(), sampling.calls.lark(tokens=True)
        return Source(kind, _BY_TOKENS.join(both))
    return None if sampling.grammar is None else Source("grammar", sampling.grammar)


_BY_TOKENS = "\n%% where the marks of a call are tokens\n"
"""Between the two grammars of a source of calls; JSON in them has no line break."""

_OPEN, _CLOSE = OPEN.encode(), CLOSE.encode()
_BLANK, _DIGIT, _OTHER = range(3)
_KINDS = {**dict.fromkeys(b" \t\n\r", _BLANK), **dict.fromkeys(b"0123456789", _DIGIT)}


class Tokens:
    """Tokenizer for llguidance, with the bytes of each id and the class of their first byte."""

    def __init__(self, tokenizer: Any, end_id: int) -> None:
        self.tokenizer = from_tokenizer(tokenizer, eos_token=end_id)
        self.end_id = end_id
        added = {t.content: id for id, t in tokenizer.added_tokens_decoder.items()}
        self.marks_calls = OPEN in added and CLOSE in added
        """True if the marks around a call are single tokens, as in Qwen's vocabularies."""
        self.text_ids = [
            id
            for id, token in tokenizer.added_tokens_decoder.items()
            if not token.special and token.content not in (OPEN, CLOSE)
        ]
        """Added tokens that are text, such as <think>, which llguidance does not count as text."""
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


class _CallRun(_Run):
    """Same, for text around calls, which are JSON; the text is JSON as well if `or_json`."""

    def __init__(self, *, or_json: bool) -> None:
        super().__init__()
        self._is_json = or_json
        self._last = b""

    def extend(self, text: bytes) -> None:
        for byte in text:
            self._last = self._last[-len(_CLOSE) :] + bytes([byte])
            if not self._quoted and self._last.endswith((_OPEN, _CLOSE)):
                self._is_json = self._last.endswith(_OPEN)
                self.kind, self.length = _OTHER, 0
            elif self._is_json:
                super().extend(bytes([byte]))


class Grammar:
    """State of one answer within its schema or grammar; only JSON has a limit on runs."""

    def __init__(
        self, matcher: Any, vocabulary: int, tokens: Tokens, kind: SourceKind = "grammar"
    ) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._tokens = tokens
        self._run: _Run | None = None
        if kind == "json_schema":
            self._run = _Run()
        elif kind != "grammar":
            self._run = _CallRun(or_json=kind == "calls or JSON")

    def allowed(self, stop_ids: tuple[int, ...]) -> np.ndarray:
        """Return a mask of the ids that may come next: bool, [vocabulary].

        Special tokens and unused ids are not allowed. A stop id is allowed if the text is complete.

        Raises:
            RequestRefusedError: The schema or grammar exceeds llguidance's limits here, or leaves
                only stop ids or special tokens.
        """
        allowed = np.zeros(self._vocabulary, dtype=bool)
        mask = np.frombuffer(self._matcher.compute_logit_bias(), dtype=np.uint8)[: allowed.size]
        allowed[: mask.size] = mask
        if self._run is not None and self._run.is_full:
            within = np.flatnonzero(allowed)
            longer = within[self._tokens.kinds[within] == self._run.kind]
            if longer.size < within.size:  # otherwise the schema requires such a number
                allowed[longer] = False
        allowed[[self._tokens.end_id, *stop_ids]] = False
        if self._matcher.is_accepting():
            allowed[list(stop_ids)] = True
        self._check()
        if not allowed.any():
            if set(stop_ids) - {self._tokens.end_id}:
                problem = "stop_token_ids: one of them is needed before the text is complete"
                raise RequestRefusedError(problem, "stop_token_ids")
            problem = "the schema or grammar requires a special token, which is not text"
            raise RequestRefusedError(problem, PARAM)
        return allowed

    def advance(self, token_id: int) -> None:
        """Advance by an allowed token.

        Raises:
            RequestRefusedError: The schema or grammar exceeds llguidance's limits here, or the
                token was not allowed.
        """
        self._matcher.consume_token(token_id)
        self._check()
        if self._run is not None:
            self._run.extend(self._tokens.bytes[token_id])

    def _check(self) -> None:
        if self._matcher.is_error():
            problem = f"the schema or grammar is too complex: {_first_line(self._matcher)}"
            raise RequestRefusedError(problem, PARAM)


class Grammars:
    """Compiler of schemas and grammars for one model's tokenizer, opened on first use."""

    def __init__(self, directory: str, vocabulary: int, model_type: str | None = None) -> None:
        self._directory, self._model_type = directory, model_type
        self._vocabulary = vocabulary
        self._trial = SchemaTrial(directory, model_type)
        self._lock = threading.Lock()
        self._opening = threading.Lock()
        self._compiling: dict[Source, threading.Lock] = {}
        self._compiled: OrderedDict[Source, _Compiled] = OrderedDict()
        self._refused: OrderedDict[Source, RequestRefusedError] = OrderedDict()
        self._tokens: Tokens | None = None

    def grammar(self, source: Source) -> Grammar:
        """Return the initial state for an answer that must match `source`.

        The first call takes a second, and one with a new source milliseconds or more: not for an
        event loop's thread. A source that takes long keeps only those waiting who ask for it, or
        for another costly one.

        Raises:
            RequestRefusedError: The source, or the model's tokenizer, cannot be compiled.
        """
        with self._lock:
            compiling = self._compiling.setdefault(source, threading.Lock())
        with compiling:
            try:
                found = self._known(source) or self._add(source)
            finally:
                with self._lock:
                    self._compiling.pop(source, None)
            matcher = found.matcher.deep_copy()
        assert self._tokens is not None
        return Grammar(matcher, self._vocabulary, self._tokens, source.kind)

    def close(self) -> None:
        """Stop the process that compiles costly schemas first."""
        self._trial.close()

    def _known(self, source: Source) -> _Compiled | None:
        with self._lock:
            if source in self._refused:
                error = self._refused[source]
                raise RequestRefusedError(str(error), error.param)
            if source in self._compiled:
                self._compiled.move_to_end(source)
            return self._compiled.get(source)

    def _add(self, source: Source) -> _Compiled:
        with self._opening:
            if self._tokens is None:
                self._tokens = open_tokens(self._directory, self._model_type)
        try:
            made = self._compile(source)
        except RequestRefusedError as error:
            with self._lock:
                self._refused[source] = error
                while len(self._refused) > COMPILED:
                    self._refused.popitem(last=False)
            raise
        with self._lock:
            self._compiled[source] = made
            while len(self._compiled) > COMPILED or (
                len(self._compiled) > 1
                and sum(kept.size for kept in self._compiled.values()) > COMPILED_BYTES
            ):
                self._compiled.popitem(last=False)
        return made

    def _compile(self, source: Source) -> _Compiled:
        assert self._tokens is not None
        size = BYTES_PER_CHARACTER * len(source.text)
        try:
            parsed = json.loads(source.text) if source.kind == "json_schema" else None
            check_counts(parsed)
        except (ValueError, RecursionError) as error:
            raise RequestRefusedError(f"json_schema: {error}", PARAM) from error
        if source.kind != "json_schema" or is_costly(source.text, parsed):
            size += self._trial.cost(source)
        return _Compiled(compile_source(self._tokens, source), size)


@dataclass(frozen=True, slots=True)
class _Compiled:
    """Matcher of a schema or grammar at the start of an answer; its approximate size in bytes."""

    matcher: Any
    size: int


def open_tokens(directory: str, model_type: str | None = None) -> Tokens:
    """Open a model's tokenizer, for the template with which it is served.

    Raises:
        RequestRefusedError: There is none that schemas can be compiled for.
    """
    try:
        tokenizer = open_served_tokenizer(local_directory(directory), model_type)
        return Tokens(tokenizer, end_of_turn_id(tokenizer))
    except (UserError, ValueError) as error:
        raise RequestRefusedError(f"this model cannot follow a schema: {error}", PARAM) from error


def compile_source(tokens: Tokens, source: Source) -> Any:
    """Compile a JSON Schema or a grammar to llguidance's matcher at the start of an answer.

    Raises:
        RequestRefusedError: It cannot be compiled, or no text matches it.
    """
    kind = source.kind
    try:
        if kind == "json_schema":
            text = LLMatcher.grammar_from_json_schema(source.text)
        else:
            text = LLMatcher.grammar_from_lark(any_to_lark(_lark(tokens, source)))
    except (ValueError, RecursionError, GbnfToLarkError) as error:
        raise RequestRefusedError(f"{kind} is not valid: {error}", PARAM) from error
    matcher = LLMatcher(tokens.tokenizer, text, log_level=0, limits=_LIMITS)
    if not matcher.is_error():
        matcher.compute_logit_bias()  # raises some errors, as for a self-reference, only here
    if matcher.is_error():
        problem = f"{kind} cannot be compiled: {_first_line(matcher)}"
        raise RequestRefusedError(problem, PARAM)
    return matcher


def _lark(tokens: Tokens, source: Source) -> str:
    by_text, _, by_tokens = source.text.partition(_BY_TOKENS)
    if not by_tokens or not tokens.marks_calls:
        return by_text
    ids = ",".join(map(str, tokens.text_ids))
    return by_tokens.replace(f"| {TEXT_TOKENS})", f"| <[{ids}]>)" if ids else ")", 1)


def _first_line(matcher: Any) -> str:
    return str(matcher.get_error()).strip().split("\n", 1)[0]
