"""Which tokens a schema leaves."""

from __future__ import annotations

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ochat_ray.serve.engines import grammar as grammar_module
from ochat_ray.serve.engines.base import RequestRefusedError, Sampling
from ochat_ray.serve.engines.grammar import Grammars, Source, open_tokens, source_of
from ochat_ray.serve.engines.schema_trial import SchemaTrial
from ochat_ray.serve.protocol.tools import CallRules, Tool

YES_OR_NO = json.dumps({"enum": ["yes", "no"]})


class Schemas(Grammars):
    """Takes a JSON Schema as text."""

    def grammar(self, source):
        return super().grammar(Source("json_schema", source) if isinstance(source, str) else source)


@pytest.fixture(scope="module")
def trial(tokenizer_directory):
    """The process that compiles costly schemas; it starts again where a test had it killed."""
    trial = SchemaTrial(tokenizer_directory)
    yield trial
    trial.close()


@pytest.fixture
def grammars(tokenizer, tokenizer_directory, trial):
    """For a model that has 11 ids more than its tokenizer."""
    grammars = Schemas(tokenizer_directory, len(tokenizer) + 11)
    grammars._trial = trial
    return grammars


def follow(grammar, tokenizer, text):
    for token_id in tokenizer.encode(text, add_special_tokens=False):
        assert grammar.allowed(())[token_id]
        grammar.advance(token_id)


def test_only_what_the_schema_can_begin_with_is_allowed(grammars, tokenizer):
    allowed = grammars.grammar(YES_OR_NO).allowed((5,))
    quotes = {i for i in range(len(tokenizer)) if tokenizer.decode([i]).startswith('"')}
    assert set(np.flatnonzero(allowed)) == {i for i in quotes if tokenizer.decode([i]) == '"'}


def test_the_template_that_is_asked_for_is_the_one_of_schemas(tokenizer_directory, tmp_path):
    copy = shutil.copytree(tokenizer_directory, tmp_path / "copy")
    (copy / "chat_template.jinja").write_text("{{ messages }}")  # no answer can be learnt with it
    with pytest.raises(RequestRefusedError, match="cannot follow a schema"):
        open_tokens(str(copy))
    asked = Schemas(str(copy), 1000, "openchat")
    try:
        assert asked.grammar(YES_OR_NO)
        assert asked._trial.cost(Source("json_schema", YES_OR_NO)) >= 0
    finally:
        asked.close()


def test_a_stop_id_is_possible_only_where_the_text_is_complete(grammars, tokenizer):
    grammar = grammars.grammar(YES_OR_NO)
    end, plain = tokenizer.convert_tokens_to_ids("<|end_of_turn|>"), tokenizer.encode("y")[0]
    follow(grammar, tokenizer, '"')
    assert not grammar.allowed((end, plain))[[end, plain]].any()
    assert grammar.allowed((end,))[plain]
    follow(grammar, tokenizer, 'yes"')
    assert np.flatnonzero(grammar.allowed((end, plain))).tolist() == sorted([end, plain])
    # The end-of-turn token is none of these requests' stop ids.
    assert np.flatnonzero(grammar.allowed((plain,))).tolist() == [plain]


def test_a_text_that_only_a_stop_id_can_begin_is_refused(grammars, tokenizer):
    (quote,) = tokenizer.encode('"', add_special_tokens=False)
    with pytest.raises(RequestRefusedError) as caught:
        grammars.grammar(YES_OR_NO).allowed((quote,))
    assert caught.value.param == "stop_token_ids"
    end = tokenizer.convert_tokens_to_ids("<|end_of_turn|>")
    special = grammars.grammar(Source("grammar", "start: <|end_of_turn|>"))
    with pytest.raises(RequestRefusedError, match="special token"):
        special.allowed((end,))


def test_padded_and_special_ids_are_never_allowed(grammars, tokenizer):
    grammar = grammars.grammar(json.dumps({"type": "string"}))
    follow(grammar, tokenizer, '"a')
    allowed = grammar.allowed(())
    assert allowed.shape == (len(tokenizer) + 11,)
    assert allowed.sum() > 100
    assert not allowed[len(tokenizer) :].any()
    assert not allowed[tokenizer.all_special_ids].any()


def test_two_answers_of_one_schema_do_not_meet(grammars, tokenizer):
    first, second = grammars.grammar(YES_OR_NO), grammars.grammar(YES_OR_NO)
    follow(first, tokenizer, '"yes"')
    follow(second, tokenizer, '"no"')


@pytest.mark.parametrize(
    "schema",
    [
        "{",
        '{"type": "number?"}',
        '{"$ref": "http://localhost/x"}',
        '{"$ref": "#"}',
        '{"type": "array", "minItems": 1000000000}',
        "[" * 100_000,
        '{"type": "string", "pattern": "(?=a)"}',
    ],
)
def test_what_cannot_be_compiled_is_refused(grammars, schema):
    with pytest.raises(RequestRefusedError, match="json_schema"):
        grammars.grammar(schema)
    grammars.grammar(YES_OR_NO)


def test_compiled_schemas_are_kept_and_bounded(grammars, monkeypatch):
    compiled = []
    compile_ = grammars._compile
    monkeypatch.setattr(grammar_module, "COMPILED", 2)
    monkeypatch.setattr(grammars, "_compile", lambda s: compiled.append(s.text) or compile_(s))
    a, b, c = (json.dumps({"const": i}) for i in range(3))
    for schema in (a, b, a, c, a, b):
        grammars.grammar(schema)
    assert compiled == [a, b, c, b]
    assert len(grammars._compiled) == 2


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("start: /[0-9]{30}/", "1" * 30),
        ('start: "a" | "b\\""', 'b"'),
        ('root ::= "x" y\ny ::= "z" | "w"', "xw"),
    ],
)
def test_a_grammar_is_followed_without_a_limit_on_digits(grammars, tokenizer, text, answer):
    grammar = grammars.grammar(Source("grammar", text))
    follow(grammar, tokenizer, answer)
    end = tokenizer.convert_tokens_to_ids("<|end_of_turn|>")
    assert np.flatnonzero(grammar.allowed((end,))).tolist() == [end]


@pytest.mark.parametrize(
    "text",
    [
        "start: /(/",
        "start: nothing",
        "start: start",
        'start: %json {"type": "integer", "multipleOf": 1000003}',
        'start: %json {"type": "array", "minItems": 1000000000}',
        "root ::= " + "(" * 8000,
    ],
)
def test_a_grammar_that_cannot_be_compiled_is_refused(grammars, text):
    with pytest.raises(RequestRefusedError, match="grammar"):
        grammars.grammar(Source("grammar", text))
    grammars.grammar(YES_OR_NO)


@pytest.mark.parametrize(
    "text",
    [
        'start: s\ns: s s s | s s | "a" | ',
        "start: /(a|b)*a(a|b){200}/",
        "start: "
        + " | ".join(f"r{i}" for i in range(300))
        + "\n"
        + "\n".join(f"r{i}: /[a-z]{{1,{i + 1}}}x/ r{i * 7 % 300}" for i in range(300)),
    ],
)
def test_no_grammar_takes_long_for_a_token(grammars, tokenizer, text):
    (a,) = tokenizer.encode("a", add_special_tokens=False)
    grammar = grammars.grammar(Source("grammar", text))
    for _ in range(40):
        started = time.thread_time()
        assert grammar.allowed(())[a]
        grammar.advance(a)
        assert time.thread_time() - started < 2


def test_a_token_that_was_not_allowed_is_an_error(grammars, tokenizer):
    with pytest.raises(RequestRefusedError, match="schema"):
        grammars.grammar(YES_OR_NO).advance(tokenizer.encode("n")[0])


def test_a_model_without_a_tokenizer_refuses(tmp_path):
    with pytest.raises(RequestRefusedError, match="tokenizer"):
        Schemas(str(tmp_path), 300).grammar(YES_OR_NO)


@pytest.mark.parametrize("char", list(" \n\t\r"))
@pytest.mark.parametrize("before", ["[", "[1", "[1,", '[1,{"a\\"":', '[1,{"a\\"":[]'])
def test_blanks_in_a_row_are_bounded(grammars, tokenizer, before, char):
    assert longest_run(grammars.grammar("{}"), tokenizer, before, char) == 20


@pytest.mark.parametrize("before", ["", "-", "0.", "1e"])
@pytest.mark.parametrize("schema", ["{}", '{"type": "number"}'])
def test_digits_in_a_row_are_bounded(grammars, tokenizer, before, schema):
    assert longest_run(grammars.grammar(schema), tokenizer, before, "1") == 20


CALL = '<tool_call>\n{"name": "add", "arguments": {"x": '
BOUNDS = [("", "1", 100), ('5" ', "1", 100), (CALL, "1", 20), ('5" ' + CALL, "1", 20)]


@pytest.mark.parametrize(
    ("answer", "before", "char", "bound"),
    [(None, *bound) for bound in BOUNDS]
    + [(None, CALL + "1}}\n</tool_call> ", "1", 100), ('{"type":"object"}', '{"a": ', "1", 20)]
    + [('{"type":"object"}', *bound) for bound in BOUNDS[2:3]],
)
def test_digits_of_arguments_are_bounded_and_those_of_text_are_not(
    grammars, tokenizer, answer, before, char, bound
):
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}}
    calls = CallRules(tools=(Tool(name="add", parameters=schema),), answer=answer)
    source = source_of(Sampling(max_tokens=1, calls=calls))
    assert longest_run(grammars.grammar(source), tokenizer, before, char) == bound


def test_blanks_and_digits_of_a_string_are_not_bounded(grammars, tokenizer):
    for char in " 1":
        assert longest_run(grammars.grammar("{}"), tokenizer, '{"\\"', char) == 100


def test_a_number_that_only_a_longer_one_completes_is_written(grammars, tokenizer):
    grammar = grammars.grammar(json.dumps({"const": 10**30}))
    follow(grammar, tokenizer, str(10**30))
    end = tokenizer.convert_tokens_to_ids("<|end_of_turn|>")
    assert grammar.allowed((end,))[end]


def longest_run(grammar, tokenizer, before, char):
    """Count how often a character may follow, one token each; stop at 100."""
    follow(grammar, tokenizer, before)
    (token_id,) = tokenizer.encode(char, add_special_tokens=False)
    end = tokenizer.convert_tokens_to_ids("<|end_of_turn|>")
    for count in range(100):
        allowed = grammar.allowed((end,))
        assert allowed.any()
        if not allowed[token_id]:
            return count
        grammar.advance(token_id)
    return 100


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "multipleOf": 10**6 + 3},
        {"type": "integer", "allOf": [{"multipleOf": 9973}, {"multipleOf": 9967}]},
    ],
)
def test_a_schema_that_takes_too_long_to_compile_is_refused_from_then_on(grammars, schema):
    with pytest.raises(RequestRefusedError, match="2 s or 1024 MiB"):
        grammars.grammar(json.dumps(schema))
    started = time.monotonic()
    with pytest.raises(RequestRefusedError, match="2 s or 1024 MiB"):
        grammars.grammar(json.dumps(schema))
    assert time.monotonic() - started < 0.1
    grammars.grammar(YES_OR_NO)


def test_a_costly_schema_keeps_only_costly_ones_waiting(grammars):
    grammars.grammar(YES_OR_NO)
    slow = json.dumps({"allOf": [{"multipleOf": 9941}, {"multipleOf": 9949}]})
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(grammars.grammar, slow)
        time.sleep(0.2)
        grammars.grammar(json.dumps({"enum": ["a", "b"]}))
        waits = not asking.done()
        with pytest.raises(RequestRefusedError):
            asking.result()
    assert waits


def test_costly_schemas_that_can_be_compiled_are(grammars, tokenizer):
    schema = {"type": "string", "pattern": "^[ab]{2}$"}
    grammar = grammars.grammar(json.dumps(schema))
    follow(grammar, tokenizer, '"ab"')


@pytest.mark.parametrize("pattern", ["^(((a{100}){100}){100}){100}$", "^x(a{1000}b{1000}){1000}$"])
def test_no_pattern_takes_long_for_a_token(grammars, tokenizer, pattern):
    started = time.monotonic()
    try:
        grammar = grammars.grammar(json.dumps({"type": "string", "pattern": pattern}))
        for character in '"xaaa':
            allowed = grammar.allowed(())
            token_id = tokenizer.encode(character, add_special_tokens=False)[0]
            if allowed[token_id]:
                grammar.advance(token_id)
    except (RequestRefusedError, ValueError):
        pass
    assert time.monotonic() - started < 20


def test_compiled_schemas_are_bounded_by_their_size(grammars, monkeypatch):
    monkeypatch.setattr(grammar_module, "COMPILED_BYTES", 2500)
    for number in range(5):
        grammars.grammar(json.dumps({"const": number}))  # of 12 characters, 1,200 bytes
    assert len(grammars._compiled) == 2
