"""What a JSON Schema may ask of its compiler."""

import json

import pytest

from ochat_ray.serve.engines.schema_limits import check_counts, is_costly


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "minItems": 10**9},
        {"type": "array", "maxItems": 2001},
        {"type": "array", "maxItems": 1e300},
        {"anyOf": [{"properties": {"a": {"minProperties": 10**9}}}]},
        {"$defs": {"a": {"contains": {}, "minContains": 10**9}}},
        {"pattern": "^a{3,5000}$"},
        {"pattern": "a{" + "9" * 5000 + "}"},
        {"patternProperties": {"^(ab){5000}$": {}}},
    ],
)
def test_large_counts_are_refused_by_name(schema):
    with pytest.raises(ValueError, match="of at most 2000"):
        check_counts(schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "maxItems": 2000},
        {"type": "string", "maxLength": 10**6},  # counted, not unrolled
        {"type": "integer", "maximum": 10**9},
        {"enum": [{"minItems": 10**9}]},
        {"const": {"pattern": "a{5000}"}},
        {"properties": {"minItems": {"type": "integer"}, "pattern": {"type": "string"}}},
        {"minItems": True},
    ],
)
def test_what_only_looks_like_a_large_count_is_not(schema):
    check_counts(schema)


@pytest.mark.parametrize(
    ("schema", "costly"),
    [
        ({"type": "object", "properties": {"a": {"type": "integer", "minimum": 0}}}, False),
        ({"enum": ["a", "b"]}, False),
        ({"maxItems": 100}, False),
        ({"maxItems": 101}, True),
        ({"anyOf": [{"multipleOf": 7}]}, True),
        ({"items": {"pattern": "a+"}}, True),
        ({"enum": ["a" * 70_000]}, True),
    ],
)
def test_divisors_patterns_counts_and_size_are_costly(schema, costly):
    assert is_costly(json.dumps(schema), schema) == costly
