"""React Router's serialisation: values are indices into one flat array."""

import math

import pytest

from ochat_ray.data.formats.turbo_stream import TurboStreamError, decode


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('["a"]', "a"),
        ("[1.5]", 1.5),
        ("[true]", True),
        ("-5", None),
        ("[[1, 2], 7, 8]", [7, 8]),
        ("[[]]", []),
        ("[{}]", {}),
        ('[{"_1": 2}, "k", "v"]', {"k": "v"}),
        ('[{"_1": 2, "_3": -7, "_4": -5}, "k", "v", "gone", "none"]', {"k": "v", "none": None}),
        ("[[-6, -3, -4, -5, -1, -7]]", [math.inf, -math.inf, 0.0, None, None, None]),
        ('[["D", 1700000000000]]', 1700000000000),
        ('[["U", "https://a.b/"]]', "https://a.b/"),
        ('[["B", "12345678901234567890"]]', "12345678901234567890"),
        ('[["R", "a+", "i"]]', "a+"),
        ('[["S", 1, 2], "a", "b"]', ["a", "b"]),
        ('[["M", 1, 2], "k", "v"]', ["k", "v"]),
        ('[["N", {"_1": 2}], "k", "v"]', {"k": "v"}),
        ('[[1, 1], {"_2": 3}, "k", "v"]', [{"k": "v"}, {"k": "v"}]),
        ('[["SingleFetchClassInstance", 1], {"_2": 3}, "k", "v"]', {"k": "v"}),
        ('[[1], ["ErrorResponse", 2, 3], "a", 404]', [None]),
        ('[{"_1": 2}, "p", ["P", 2]]\nP2:["later"]\n', {"p": "later"}),
        ('[{"_1": 2}, "p", ["P", 2]]\nP2:[{"_4": 5}, "k", "v"]\n', {"p": {"k": "v"}}),
        ('[{"_1": 2}, "p", ["P", 2]]\nP2:-5\n', {"p": None}),
        ('[{"_1": 2}, "p", ["P", 2]]\nE2:[["E", "failed"]]\n', {}),
        ('[{"_1": 2}, "p", ["P", 2]]\n', {}),
        (
            '[{"_1": 2, "_3": 4}, "p", ["P", 2], "q", ["P", 4]]\nP4:["b"]\nP2:[["Z", 5]]\n',
            {"p": "b", "q": "b"},
        ),
    ],
)
def test_values(text, value):
    assert decode(text) == value


def test_no_number_is_a_number():
    assert math.isnan(decode("[[-2]]")[0])


def test_values_used_twice_are_one_object_and_may_hold_themselves():
    value = decode('[{"_1": 0, "_2": 3, "_4": 3}, "self", "a", [], "b"]')
    assert value["self"] is value
    assert value["a"] is value["b"]


def test_depth_is_no_recursion():
    text = "[" + ",".join(f"[{n + 1}]" for n in range(50_000)) + ', "end"]'
    value = decode(text)
    for _ in range(50_000):
        (value,) = value
    assert value == "end"


@pytest.mark.parametrize(
    "text",
    [
        "", "\n", "[", "{}", '"a"', "[]", "[[5]]", "[[-9]]", '[{"k": 1}, "v"]', '[{"_x": 1}, "v"]',
        '[{"_1": 2}, 3, "v"]', '[["?", 1]]', '[[true]]', '["a"]\nX1:["b"]', '["a"]\nP:["b"]',
        '[["Z", 1], ["Z", 0]]', '[["Z"]]', '["a"]\nP1:["b"',
        '[{"_1": 2}, "k", [["D"]]]', '[["P", [1]]]', '[{"_1": "2"}, "k", 1]', '[[[1]], 2]',
        '[{"_' + "1" * 5000 + '": 1}, "k"]',
    ],
)  # fmt: skip
def test_what_is_no_stream_is_an_error(text):
    with pytest.raises(TurboStreamError):
        decode(text)
