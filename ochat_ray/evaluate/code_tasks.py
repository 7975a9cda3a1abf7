"""Programming tasks that unit tests decide: HumanEval, MBPP and evalplus' extensions of them.

Source of the formats: openai/human-eval (HumanEval.jsonl.gz), google-research's mbpp.jsonl, and
evalplus' data sets with a `test` column; each problem's program is the model's code and the tests.
"""

from __future__ import annotations

import ast
import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ochat_ray.errors import UserError
from ochat_ray.evaluate import sandbox
from ochat_ray.evaluate.config import UNIT_TESTS
from ochat_ray.evaluate.questions import Answers, Question
from ochat_ray.evaluate.records import Call, key_of
from ochat_ray.evaluate.stats import Part
from ochat_ray.evaluate.suite import Judgments, Suite
from ochat_ray.evaluate.verdicts import without_reasoning

PASSED = "passed"
SHOWN_TESTS = 3

_BLOCK = re.compile(
    r"^[ \t]*```[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE
)
_FUNCTION = (
    "Complete this Python function. Reply with a single code block that has the complete function, "
    "with all imports that it needs.\n\n```python\n{prompt}\n```"
)
_TASK = (
    "{prompt}\n\nWrite it in Python. Reply with a single code block that has the complete code, "
    "with all imports that it needs. It has to pass tests such as:\n\n```python\n{tests}\n```"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """A task: what the model is asked, and the tests.

    Attributes:
        question: The question for the model.
        prelude: Code before the model's: a prompt that is code, with its imports and helpers.
        tests: Code after the model's, which raises an error if the code is wrong.
        entry_point: Name of the function that the tests call; empty if unknown.
    """

    question: Question
    prelude: str
    tests: str
    entry_point: str


def read_problems(path: str, *, limit: int | None = None) -> dict[str, Problem]:
    """Read the first `limit` problems of a JSONL file, also gzipped, by id.

    Raises:
        UserError: The file cannot be read, or a record is not a problem; the line names it.
    """
    problems: dict[str, Problem] = {}
    try:
        content = Path(path).read_bytes()
        text = (gzip.decompress(content) if path.endswith(".gz") else content).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            problem = _problem(line, f"{path}, line {number}")
            if problem.question.id in problems:
                raise UserError(f"{path}, line {number}: task {problem.question.id!r} occurs twice")
            problems[problem.question.id] = problem
    if not problems:
        raise UserError(f"{path}: no problems")
    return dict(list(problems.items())[:limit])


def _problem(line: str, where: str) -> Problem:
    try:
        record = json.loads(line)
        id, prompt = str(record["task_id"]), record.get("prompt", record.get("text"))
        entry, listed = record.get("entry_point") or "", record.get("test_list") or []
        setup = record.get("test_setup_code") or "\n".join(record.get("test_imports") or [])
        tests = record.get("test") or "\n".join([setup, *listed])
        if not (isinstance(prompt, str) and prompt.strip() and tests.strip()):
            raise KeyError("test")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{where}: {type(error).__name__} {error}; a problem has `task_id`, `prompt` (or "
            "`text`) and `test` (or `test_list`)"
        ) from error
    is_code = bool(entry) and _defines(prompt, entry)
    if is_code:
        asked, tests = _FUNCTION.format(prompt=prompt.strip("\n")), f"{tests}\n\ncheck({entry})"
    else:
        shown = "\n".join(listed[:SHOWN_TESTS]) or "\n".join(tests.split("\n")[:SHOWN_TESTS])
        asked = _TASK.format(prompt=prompt.strip(), tests=shown)
    return Problem(
        question=Question(id=id, category="", turns=(asked,)),
        prelude=prompt if is_code else "",
        tests=tests,
        entry_point=entry,
    )


def _defines(code: str, name: str) -> bool:
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return any(isinstance(node, kinds) and node.name == name for node in tree.body)


def extract_code(answer: str, problem: Problem) -> str:
    """Return the code of an answer.

    This is the first code block that defines the entry point, otherwise the first one in Python or
    without a language, otherwise the text itself. Code that does not define the entry point
    continues the prompt.
    """
    text = without_reasoning(answer)
    blocks = [(language.lower(), code) for language, code in _BLOCK.findall(text)]
    codes = [code for language, code in blocks if language in ("", "python", "python3", "py")]
    entry = problem.entry_point
    chosen = next((code for code in codes if entry and _defines(code, entry)), None)
    if chosen is None:
        chosen = codes[0] if codes else text
    if problem.prelude and not _defines(chosen, entry):
        return problem.prelude.rstrip() + "\n" + chosen.strip("\n")
    # The prompt defines the function as well, without a body but its docstring.
    return f"{problem.prelude.rstrip()}\n\n\n{chosen}" if problem.prelude else chosen


def parts(judgments: Iterable[Mapping[str, Any]]) -> dict[str, Part]:
    """Return each question's contribution to the share of solved problems, in percent."""
    return {j["question_id"]: Part(100.0 * (j["reason"] == PASSED), 1) for j in judgments}


class CodeTasks(Suite):
    """Suite `code`: a judgment is the execution of a program in a sandbox."""

    unit = "% of problems solved (pass@1)"
    local_judge = UNIT_TESTS
    judgment_unit = "programs"

    def read_questions(self) -> list[Question]:
        self.problems = read_problems(self.config.questions, limit=self.config.limit)
        return [problem.question for problem in self.problems.values()]

    def temperature(self, _category: str) -> float:
        return 0.0

    def calls(
        self, questions: Sequence[Question], model: Answers, _baseline: Answers | None
    ) -> list[Call]:
        """Return one execution per question; its body has the program."""
        found = []
        for question in questions:
            problem, answer = self.problems[question.id], model.turns[question.id][0]
            program = f"{extract_code(answer, problem)}\n\n{problem.tests}\n"
            about = {
                "suite": "code", "question_id": question.id, "category": question.category,
                "model": model.model, "judge": UNIT_TESTS,
            }  # fmt: skip
            key = key_of("code", question.id, program, self.config.code_timeout_s)
            found.append(Call(key=key, body={"program": program}, about=about))
        return found

    def check(self) -> None:
        """Check also that a sandbox can be made, if this run makes one."""
        super().check()
        if self.config.step in ("all", "judge") and not self.config.dry_run:
            sandbox.check()

    def decide(self, call: Call) -> dict[str, Any]:
        outcome = sandbox.run(call.body["program"], timeout_s=self.config.code_timeout_s)
        return {"reason": outcome.reason, "text": outcome.output}

    def read(self, judgment: Mapping[str, Any]) -> str:
        """Return the result of an execution: passed, failed or timed out."""
        return str(judgment["reason"])

    def parts(self, judgments: Judgments) -> dict[str, Part]:
        """Return 100 for each solved problem."""
        return parts(judgments)

    def more(self, judgments: Judgments) -> dict[str, Any]:
        """Return the numbers of executions by result."""
        return {"executions": dict(Counter(map(self.read, judgments)))}
