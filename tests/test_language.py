"""Language of docstrings, comments and documents, as far as patterns can check it."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("ochat_ray", "jobs", "benchmarks", "examples")
    for path in (ROOT / folder).rglob("*.py")
)
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]

QUESTION = re.compile(r"(?:What|Which|How|Whether|Why|Who|Does|Is|Are)\b")
PLURAL = (
    r"(?:tokens|bytes|bits|[kMG]i?B|seconds|ms|minutes|hours|requests|calls|pages|files|records"
    r"|rows|messages|conversations|replies|answers|deltas|steps|packs|CPUs?|GPUs?|limits?)"
)
UNIT = (
    r"(?:token|byte|second|minute|hour|day|request|call|page|file|record|row|message|conversation"
    r"|reply|answer|step|pack|part|group|task|worker|rank|device|process|replica|node|host|GPU|CPU"
    r"|parameter|key|turn|line|band|shingle|round|choice)"
)
IDIOMS = {
    "N a UNIT, for 'per'": rf"\b{PLURAL} an? {UNIT}\b",
    "'go on', for continue or resume": r"\b(?:go|goes|went|going) on(?! (?:the|a|to)\b)",
    "'anew'": r"\banew\b",
    "'thereof', 'therein'": r"\bthere(?:of|in|upon)\b",
    "'the road is whole'": r"\broad is whole\b",
    "'of its own accord'": r"\bof its own accord\b",
    "'beside itself'": r"\bbeside (?:it|them)?sel(?:f|ves)\b",
    "'without a word'": r"\bwithout a word\b",
    "'a sign of life'": r"\bsigns? of life\b",
    "'can be told', 'is told'": r"\b(?:can be|is|are|was|were) told\b",
    "a file or program that 'says'": r"\b(?:file|page|line|flag|manifest|column|option)s? says?\b",
    "'makes way'": r"\bmake(?:s)? way\b",
    "'dearest first', 'dealt to'": r"\bdearest\b|\bdealt to\b",
    "'mend', for fix": r"\bmend(?:s|ed|ing)?\b",
}

COMMENT = re.compile(r"(?:^\s*|  )(# .*)")
ANY_IDIOM = re.compile("|".join(IDIOMS.values()))


def prose_of(source: str) -> list[tuple[int, str]]:
    """Return (line, text) of the docstrings, attribute strings and comments of a module."""
    tree = ast.parse(source)
    found = [
        (node.lineno, node.value.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    ]
    strings = {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant | ast.JoinedStr) and node.end_lineno != node.lineno
        for line in range(node.lineno, node.end_lineno)
    }
    lines = enumerate(source.splitlines(), 1)
    comments = ((line, COMMENT.search(text)) for line, text in lines if line not in strings)
    return found + [(line, comment[1]) for line, comment in comments if comment]


def idioms_in(text: str) -> list[str]:
    """Return the idioms that occur in a text, with line breaks counting as spaces."""
    joined = " ".join(text.split())
    if not ANY_IDIOM.search(joined):
        return []
    return [name for name, pattern in IDIOMS.items() if re.search(pattern, joined)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It sends 80 deltas a second.", True),
        ("It sends 80 deltas per second.", False),
        ("12 bytes a\n    parameter", True),
        ("A run that was killed goes on with --resume.", True),
        ("The server goes on the network.", False),
        ("The tokenizer is built anew.", True),
        ("What the command can be told", True),
        ("The file says so.", True),
        ("A node that becomes unreachable is declared dead.", False),
    ],
)
def test_the_idioms_are_recognized(text, found):
    assert bool(idioms_in(text)) is found


def test_docstrings_and_comments_are_the_prose_of_a_module():
    source = (
        '"""One."""\n\nX = 1  # two\n"""Three."""\n\n\ndef f():\n    """Four."""\n    g("five")\n'
    )
    assert sorted(text for _, text in prose_of(source)) == ["# two", "Four.", "One.", "Three."]


@pytest.mark.parametrize(
    ("summary", "question"),
    [
        ("What is found out before anything starts.", True),
        ("How fast the workers exchange tensors.", True),
        ("Scale of prepare: does it use all nodes?", True),
        ("Whatever comes first.", False),
        ("Checks that run before a training job starts.", False),
    ],
)
def test_questions_are_recognized(summary, question):
    assert is_question(summary) is question


def is_question(summary: str) -> bool:
    return bool(QUESTION.match(summary)) or summary.endswith("?")


def test_no_module_docstring_is_a_question():
    docstrings = {
        path: ast.get_docstring(ast.parse((ROOT / path).read_text())) or "" for path in MODULES
    }
    summaries = {path: text.partition("\n")[0] for path, text in docstrings.items()}
    assert [path for path, text in summaries.items() if is_question(text)] == []


def test_docstrings_and_comments_have_no_house_idioms():
    assert [
        f"{path}:{line}: {name}"
        for path in MODULES
        for line, text in prose_of((ROOT / path).read_text())
        for name in idioms_in(text)
    ] == []


def test_documents_have_no_house_idioms():
    assert [
        f"{path}:{number}: {name}"
        for path in PAGES
        for number, text in enumerate((ROOT / path).read_text().splitlines(), 1)
        if not text.startswith("    ")
        for name in idioms_in(re.sub("`[^`]*`", "`code`", text))
    ] == []


def test_the_glossary_is_alphabetic_and_linked():
    terms = re.findall(r"^\| \*\*(.+?)\*\*", (ROOT / "docs/glossary.md").read_text(), re.MULTILINE)
    assert len(terms) >= 40
    assert [term.lower() for term in terms] == sorted(term.lower() for term in terms)
    assert "docs/glossary.md" in (ROOT / "README.md").read_text()
