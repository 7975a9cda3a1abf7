"""The pager that an extension glued to a turn's start, told from fractions that people write."""

import pytest

from ochat_ray.data.pager import pager_end, without_pager


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("2 / 3What is a pager?", "What is a pager?"),
        ("\n2 / 3What", "What"),
        ("1 / 1The end", "The end"),
        ("2 / 2I am here", "I am here"),
        ("2 / 2I'm here", "I'm here"),
        ("12 / 12Über uns", "Über uns"),
        ("2 / 3<p>Hello</p>", "<p>Hello</p>"),
        ("2 / 3\x1bHello", "\x1bHello"),
        ("1 / 2Привет", "Привет"),
        ("1 / 2你好", "你好"),
    ],
)
def test_a_pager_before_a_capital_or_markup_is_certain(text, rest):
    assert without_pager(text) == rest


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("1 / 2can you explain it", "can you explain it"),
        ("2 / 2continue", "continue"),
        ("1 / 2# Title", "# Title"),
        ("1 / 2(a note)", "(a note)"),
    ],
)
def test_a_pager_before_other_text_is_possible(text, rest):
    assert without_pager(text) == text
    assert without_pager(text, possible=True) == rest


@pytest.mark.parametrize(
    "text",
    [
        "1 / 2x + 3 = 7, solve for x", "1 / 2x = 4, so x = 8", "3 / 4X+1", "1 / 2n of",
        "1 / 2mv^2", "1 / 2sin(x)", "1 / 2Mg + O2", "1 / 2H2O", "1 / 2Base × height",
        "1 / 2Area = A", "1 / 2π r",
        "1 / 2cup of flour", "3 / 4inch pipe", "1 / 2Cup sugar", "3 / 4\" pipe", "1 / 2的学生",
        "1 / 2の人", "2 / 3rd", "2 / 3rds of it", "2 / 3 of them", "1 / 2", "1 / 2\n", "1 / 2%",
        "3 / 2What", "0 / 2What", "100 / 200What", "2/3What", "12 / 345What", "see 2 / 3What",
        "2 / 3. What", "1 / 2*3",
    ],
)  # fmt: skip
def test_what_people_write_is_no_pager(text):
    assert pager_end(text) is None
    assert without_pager(text, possible=True) == text
