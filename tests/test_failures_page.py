"""docs/failures.md: every quoted line is a message of the code."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/failures.md").read_text()
LINES = [line.strip() for line in PAGE.splitlines() if line.startswith("    ")]
LITERAL = 10
"""Characters of a message that are no value, from which it is taken as one."""


@cache
def messages():
    """Return a pattern per text of the package, in which any value stands for a placeholder."""
    found = []
    for path in (ROOT / "ochat_ray").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = node.values
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                parts = [node]
            else:
                continue
            texts = [part.value if isinstance(part, ast.Constant) else None for part in parts]
            if sum(len(text or "") for text in texts) >= LITERAL:
                pattern = "".join(".*" if text is None else re.escape(text) for text in texts)
                found.append(re.compile(pattern.replace("%s", ".*").replace("%d", ".*")))
    return found


def unexplained(line):
    """Return the share of a line's characters that no message covers."""
    covered = set()
    for message in messages():
        for match in message.finditer(line):
            covered.update(range(*match.span()))
    return 1 - len(covered) / len(line)


@pytest.mark.parametrize("line", LINES)
def test_a_quoted_line_is_a_message_of_the_code(line):
    line = re.sub(r"^jobs/\w+\.py: ", "", line)
    assert unexplained(line) < 0.25


def test_a_line_that_no_code_prints_is_found():
    assert unexplained("the workers have all gone home; call them back") > 0.9


def test_there_are_ten_failures_with_a_line_each():
    sections = PAGE.split("\n## ")[1:]
    assert [section.split(".")[0] for section in sections] == [str(n) for n in range(1, 11)]
    assert all("\n    " in section for section in sections)
