"""Programming tasks: problems, code of answers, the sandbox, and the score."""

import gzip
import json
import shutil
import time

import pytest

from ochat_ray.errors import UserError
from ochat_ray.evaluate import sandbox
from ochat_ray.evaluate.code_tasks import extract_code, read_problems
from ochat_ray.evaluate.config import EvaluateConfig
from ochat_ray.evaluate.steps import run
from tests.evaluate.endpoint import Endpoint

PROMPT = 'import math\n\n\ndef half(x):\n    """Return half of x."""\n'
HALF = {
    "task_id": "Own/0",
    "prompt": PROMPT,
    "entry_point": "half",
    "test": "def check(candidate):\n    assert candidate(4) == 2\n",
}
MBPP = {
    "task_id": 2,
    "text": "Write a function to add.",
    "test_setup_code": "",
    "test_list": ["assert add(1, 2) == 3"],
}
needs_sandbox = pytest.mark.skipif(shutil.which("bwrap") is None, reason="needs bubblewrap")


def problems(tmp_path, *records):
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return read_problems(str(path))


def test_humaneval_and_mbpp_are_read(tmp_path):
    found = problems(tmp_path, HALF, MBPP)
    half, add = found["Own/0"], found["2"]
    assert "Return half of x." in half.question.turns[0]
    assert half.tests.endswith("check(half)")
    assert half.prelude == PROMPT
    assert "assert add(1, 2) == 3" in add.question.turns[0]
    assert (add.prelude, add.tests.strip()) == ("", "assert add(1, 2) == 3")


def test_humanevals_own_file_is_gzipped(tmp_path):
    path = tmp_path / "HumanEval.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(HALF).encode()))
    assert list(read_problems(str(path))) == ["Own/0"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{", "line 1"),
        ('{"task_id": 1, "prompt": "p"}', "'test'"),
        ("", "no problems"),
        ("[1]", "line 1: TypeError"),
    ],
)
def test_other_files_are_one_line(tmp_path, text, line):
    path = tmp_path / "p.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=line):
        read_problems(str(path))


GOOD = "def half(x):\n    return x / 2\n"


@pytest.mark.parametrize(
    "answer",
    [
        f"```python\n{GOOD}```",
        f"Here:\n\n```\n{GOOD}```\nIt divides.",
        f"First an example:\n```python\nhalf(4)\n```\nand\n```python\n{GOOD}```",
        f"```bash\npip install x\n```\n```python\n{GOOD}```",
        f"<think>```python\ndef half(x): return 1\n```\n</think>\n```python\n{GOOD}```",
        f"```python\n{GOOD}",
        GOOD,
        "    return x / 2\n",
        "```python\n    return x / 2\n```",
    ],
)
def test_the_code_of_an_answer_passes(tmp_path, answer):
    problem = problems(tmp_path, HALF)["Own/0"]
    names = {}
    exec(f"{extract_code(answer, problem)}\n\n{problem.tests}", names)  # our own code
    assert names["half"](6) == 3


def test_programs_are_run_only_if_asked_for():
    fields = {"suite": "code", "questions": "q", "output": "o", "model": ("m",)}
    with pytest.raises(UserError, match="allow it with --run-code"):
        EvaluateConfig(**fields).check()
    EvaluateConfig(step="answer", **fields).check()
    EvaluateConfig(run_code=True, **fields).check()
    with pytest.raises(UserError, match="--judge has no effect on --suite code"):
        EvaluateConfig(run_code=True, judge="j", **fields).check()
    with pytest.raises(UserError, match="are for --suite code"):
        EvaluateConfig(run_code=True, questions="q", model=("m",)).check()


def configured(tmp_path, url):
    path = tmp_path / "problems.jsonl"
    records = [HALF | {"task_id": f"Own/{n}"} for n in range(4)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return EvaluateConfig(
        suite="code", questions=str(path), output=str(tmp_path / "out"), model=("ours",), url=url,
        run_code=True, code_timeout_s=5,
    )  # fmt: skip


def test_nothing_is_asked_or_run_without_a_sandbox(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    endpoint = Endpoint(lambda body: GOOD)
    with endpoint.serving(), pytest.raises(UserError, match="bubblewrap, which is not installed"):
        run(configured(tmp_path, endpoint.url))
    assert endpoint.asked == []


def test_each_program_is_run_once_and_the_score_is_the_share_that_passes(tmp_path, monkeypatch):
    """Stands in for the sandbox, with results by the text of the program."""
    programs = []

    def stand_in(program, *, timeout_s):
        programs.append(program)
        reason = "timed out" if "while" in program else "failed" if "/ 3" in program else "passed"
        return sandbox.Outcome(reason=reason, output="")

    monkeypatch.setattr(sandbox, "check", lambda: None)
    monkeypatch.setattr(sandbox, "run", stand_in)
    answers = iter([GOOD, GOOD.replace("/ 2", "/ 3"), GOOD.replace("return", "while"), GOOD])
    endpoint = Endpoint(lambda body: next(answers))
    with endpoint.serving():
        result = run(configured(tmp_path, endpoint.url))
        again = run(configured(tmp_path, endpoint.url))
    (one,) = result["scores"]
    assert (one["score"], one["judgments"], one["failed"]) == (50, 4, 0)
    assert one["executions"] == {"passed": 2, "failed": 1, "timed out": 1}
    assert result["judge"] == "unit tests"
    assert again["scores"] == result["scores"]
    assert len(programs) == 4
    page = (tmp_path / "out/report.html").read_text()
    assert "2 passed, 1 failed, 1 timed out." in page
    assert "unit tests: <b>timed out</b>" in page


@needs_sandbox
def test_code_is_scored_in_the_sandbox(tmp_path):
    answers = iter([GOOD, GOOD.replace("/ 2", "/ 3"), "exit()", f"```python\n{GOOD}```"])
    endpoint = Endpoint(lambda body: next(answers))
    with endpoint.serving():
        (one,) = run(configured(tmp_path, endpoint.url))["scores"]
    assert one["executions"] == {"passed": 2, "failed": 2}


@needs_sandbox
@pytest.mark.parametrize(
    "program",
    [
        "import os; assert not os.path.exists('/home')",
        "import os; assert set(os.listdir('/tmp')) == set()",
        "import os; assert 'OCHAT_RAY_SECRET' not in os.environ",
        "import os; assert len([p for p in os.listdir('/proc') if p.isdigit()]) <= 2",
        "import os, numpy; assert not os.access('/usr', os.W_OK)",
        "import socket\ntry:\n    socket.create_connection(('192.0.2.1', 80), 1)\n"
        "except OSError as error:\n    assert error.errno == 101  # network is unreachable\n"
        "else:\n    assert False",
    ],
)
def test_a_program_reaches_nothing(program, monkeypatch):
    monkeypatch.setenv("OCHAT_RAY_SECRET", "x")
    found = sandbox.run(program, timeout_s=20)
    assert found.reason == "passed", found.output


@needs_sandbox
@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("raise SystemExit(0)", "failed"),
        ("while True: pass", "timed out"),
        ("x = bytearray(8 << 30)", "failed"),
        ("open('/tmp/x', 'wb').write(bytes(1 << 25))", "failed"),
        ("print('x' * 10**6)", "passed"),
    ],
)
def test_limits_hold(program, reason):
    begun = time.monotonic()
    found = sandbox.run(program, timeout_s=1 if reason == "timed out" else 20)
    assert found.reason == reason
    assert len(found.output) <= sandbox.OUTPUT_BYTES
    assert time.monotonic() - begun < 60
