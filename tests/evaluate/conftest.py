"""A few questions of Vicuna's form."""

import json

import pytest

QUESTIONS = 6


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "questions.jsonl"
    rows = [
        {"question_id": n, "text": f"question {n}", "category": "math" if n % 2 else "generic"}
        for n in range(QUESTIONS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
